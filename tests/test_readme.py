"""README and guides are true: their commands run in the order they stand in, each once; README's Python runs."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from ika_lightning.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# in this order, as the commands of a guide go on from runs of those before
GUIDES = [
    (ROOT / "docs" / f"{name}.md").read_text()
    for name in ("table", "texts", "translations", "graph", "reproduce", "export", "pictures")
]
PICTURES = GUIDES[-1]


def commands_of(page: str) -> list[str]:
    return [
        line.split("  #")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]


# what a guide repeats is not run again
COMMANDS = list(dict.fromkeys(command for page in (README, *GUIDES) for command in commands_of(page)))
# test_docs.py has that of the guides
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# Two epochs of a few batches, and a validation after each, however seldom a configuration validates.
SHORT = ["--trainer.max_epochs", "2", "--trainer.val_check_interval", "1.0", "--trainer.check_val_every_n_epoch", "1"]
SHORT += ["--trainer.limit_train_batches", "7", "--trainer.limit_val_batches", "2"]
# What needs the shell of a person: the environment that the tests are in already, and a server.
NOT_RUN = {"source .venv/bin/activate", "tensorboard --logdir runs"}


def test_something_was_found() -> None:
    assert len(COMMANDS) > 20
    assert len(PYTHON) >= 2


def test_it_stays_short() -> None:
    assert len(README.splitlines()) <= 130


def test_it_opens_with_the_two_commands() -> None:
    assert COMMANDS[:2] == ["make fit", "make test"]
    for command in COMMANDS[:2]:
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.first
@pytest.mark.filterwarnings("ignore:.* of the .* texts to predict have")  # blank lines, long ones
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("ika_lightning", "configs", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for command in COMMANDS[2:]:
        if command in NOT_RUN:
            continue
        assert command.startswith("python "), command
        words = shlex.split(command)[1:]
        if words[:2] == ["-m", "ika_lightning"]:
            run(lambda words=words: main([*words[2:], *shorter(words[2:])]))
        else:  # a benchmark, which takes long: that it starts is all that is tested
            monkeypatch.setattr(sys, "argv", [words[0], "--help"])
            run(lambda words=words: runpy.run_path(words[0], run_name="__main__"))
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 522


def shorter(words: list[str]) -> list[str]:
    """Return what makes a command of the package one that a test can wait for."""
    if words[0] == "test":
        return ["--trainer.limit_test_batches", "2"]
    if words[0] != "fit" or any(word.endswith(".help") for word in words):
        return []
    # of the first run alone, as other tests draw those of each task
    return [*SHORT, "--pictures", "0"] if Path("runs").exists() else SHORT


def run(command) -> None:
    try:
        command()
    except SystemExit as end:
        assert end.code in (0, None)


@pytest.mark.parametrize("code", PYTHON)
def test_python_runs(code: str) -> None:
    names: dict[str, object] = {}
    exec(code, names)
    assert len(names) > 1


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PICTURES, re.DOTALL))
def test_python_of_the_page_of_pictures_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert ("savefig" in code) is Path("similarity.png").is_file()


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", PICTURES))
def test_links_of_the_page_of_pictures_lead_somewhere(target: str) -> None:
    file = ROOT / "docs" / target
    assert file.is_file() and (file.suffix != ".png" or file.stat().st_size < 150_000)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert target.startswith("https://") or (ROOT / target).exists()
