"""What others install and cite is this version, and the package is what a user imports."""

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import ika_lightning

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())
PUBLIC = ["attention", "attention.graph", "attention.backends", "callbacks", "data", "data.datasets", "models",
          "pictures", "sklearn", "study", "tasks"]  # fmt: skip


def test_the_version_is_the_same_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == ika_lightning.__version__ == cited["version"]
    assert newest[2] == str(cited["date-released"])
    assert cited["license"] == PROJECT["license"]


def test_every_dependency_says_its_lowest_version_and_which_one_the_tests_pass_with() -> None:
    exact = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().lower().splitlines() if "==" in line
    )
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for name in extras if name != "docs" for line in extras[name])]:
        needed = Requirement(line)
        if needed.name == "ika-lightning":
            continue
        assert any(bound.operator == ">=" for bound in needed.specifier), line
        names = {needed.name.lower(), needed.name.lower().replace("-", "_")}
        (version,) = {exact[name] for name in names if name in exact}
        assert needed.specifier.contains(version), line


def test_the_workflow_tests_every_version_of_python_that_is_supported() -> None:
    pythons = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    commands = "\n".join(step.get("run", "") for step in WORKFLOW["jobs"]["style"]["steps"])
    makefile = (ROOT / "Makefile").read_text().partition("\ncheck:")[2].partition("\n\n")[0]
    for command in re.findall(r"\$\(BIN\)/(.+)", makefile):
        assert command in commands


@pytest.mark.parametrize("package", PUBLIC)
def test_a_package_exports_what_is_there(package: str) -> None:
    module = importlib.import_module(f"ika_lightning.{package}")
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names)) and all(hasattr(module, name) for name in names)


def test_the_list_of_packages_is_whole() -> None:
    there = {
        module.name.removeprefix("ika_lightning.")
        for module in pkgutil.walk_packages(ika_lightning.__path__, "ika_lightning.")
        if module.ispkg
    }
    # the command line is a program
    assert there - {"cli"} == set(PUBLIC)
