"""Fixtures for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def benchmark_root() -> Path:
    """The folder of the benchmark data sets, if this computer has them."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    for folder in (os.environ.get("IKA_DATA"), beside):
        if folder and Path(folder, "regression").is_dir():
            return Path(folder)
    pytest.skip("the benchmark data sets are not on this computer; set IKA_DATA to their folder")
