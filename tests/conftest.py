"""Fixtures for all tests."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

# fixtures have no examples to run, and as modules the two files would have one name
collect_ignore = ["conftest.py", "attention/conftest.py"]

# side by side there is a worker for each core, and more threads would be in one another's way
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and leave all else in the order of its files, whose fixtures are shared."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over all modules and tests, which are there until the end."""
    gc.collect()
    gc.freeze()
    # most of what tests make has no cycles
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """End the group of processes that a test has begun, or later tests would take themselves for a part of it."""
    environment = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file grow beyond some bytes, as a disk that is full would."""
    if sys.platform == "win32":
        pytest.skip("Windows has no limits on the size of files")
    import resource

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


@pytest.fixture(scope="session")
def benchmark_root() -> Path:
    """The folder of the benchmark data sets, if this computer has them."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    for folder in (os.environ.get("IKA_DATA"), beside):
        if folder and Path(folder, "regression").is_dir():
            return Path(folder)
    pytest.skip("the benchmark data sets are not on this computer; set IKA_DATA to their folder")


@pytest.fixture(scope="session")
def iwslt14_root(benchmark_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for IWSLT'14, with the part of its training text that there is."""
    part = benchmark_root / "translation" / "iwslt14_de_en_partial"
    if not part.is_dir():
        pytest.skip("IWSLT'14 is not on this computer")
    root = tmp_path_factory.mktemp("corpora")
    folder = root / "translation" / "iwslt14"
    folder.mkdir(parents=True)
    for file in part.iterdir():
        (folder / file.name.replace("train_sample", "train")).symlink_to(file)
    return root
