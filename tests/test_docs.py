"""The site: every public name is in its reference, with an example, and what its pages tell readers to type works.

``make docs`` builds it, which fails on a broken link and on an error in a tutorial; here is what needs no build.
"""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import ika_lightning

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
#: Modules that are public though they are no packages.
MODULES = ["ika_lightning.protocols", "ika_lightning.study.references"]
#: Pages whose Python runs as it stands; test_readme.py has what the README has as well, that of pictures.md and all
#: commands, test_export.py has that of export.md.
PAGES = ["your_model", "table", "texts", "extend"]


def public() -> list[ModuleType]:
    packages = [found.name for found in pkgutil.walk_packages(ika_lightning.__path__, "ika_lightning.") if found.ispkg]
    modules = map(importlib.import_module, [*packages, *MODULES])
    return [module for module in modules if hasattr(module, "__all__")]


PUBLIC = public()
NAMES = [(module.__name__, name) for module in PUBLIC for name in module.__all__]
#: What has a docstring of its own: classes and functions, no aliases and no tables of names.
DOCUMENTED = [
    (module, name)
    for module, name in NAMES
    if inspect.isclass(found := getattr(importlib.import_module(module), name)) or inspect.isfunction(found)
]


def in_reference() -> set[str]:
    """The names that autodoc is told to write about, as a reader of these pages would."""
    found: set[str] = set()
    for page in (DOCS / "reference").glob("*.rst"):
        module = ""
        for directive, argument, options in re.findall(r"^\.\. (\w+):: (\S+)\n((?:   :.*\n)*)", page.read_text(), re.M):
            if directive == "currentmodule":
                module = argument
            elif directive == "automodule" and ":members:\n" in options and ":no-members:" not in options:
                found |= {f"{argument}.{name}" for name in getattr(importlib.import_module(argument), "__all__", [])}
            elif directive.startswith("auto") and directive != "automodule":
                found.add(argument if argument.startswith("ika_lightning.") else f"{module}.{argument}")
    return found


REFERENCE = in_reference()


def test_the_public_packages_are_found() -> None:
    assert {"ika_lightning.attention", "ika_lightning.tasks", "ika_lightning.sklearn"} < {m.__name__ for m in PUBLIC}
    assert len(DOCUMENTED) > 60


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_public_name_is_in_the_reference(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    others = [other for other, same in NAMES if same == name and getattr(importlib.import_module(other), name) is thing]
    assert any(f"{other}.{name}" in REFERENCE for other in others), f"{module}.{name} is on no page of docs/reference"


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_every_public_class_and_function_has_an_example(module: str, name: str) -> None:
    # one's own: a docstring that is inherited speaks of something else
    text = getattr(importlib.import_module(module), name).__doc__ or ""
    assert "Example:" in text and ">>> " in text, f"{module}.{name} has no example"


def test_examples_are_run(pytestconfig: pytest.Config) -> None:
    """pytest itself runs them; running them here as well would only take time."""
    assert pytestconfig.getoption("doctestmodules")
    assert "ika_lightning" in pytestconfig.getini("testpaths")


def pages() -> set[str]:
    return {
        page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md") if "_build" not in page.parts
    }


def test_every_page_can_be_reached() -> None:
    listed = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    entries = {line for block in listed for line in block.splitlines() if line and not line.startswith(":")}
    assert pages() - {"index"} <= entries and len(entries) > 15


@pytest.mark.parametrize("page", sorted(pages()))
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file = target.partition("#")[0]
        assert target.startswith("https://") or ((DOCS / f"{page}.md").parent / file).exists(), target


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("page", "code"),
    [
        pytest.param(page, code, id=f"{page}-{number}")
        for page in PAGES
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL))
        if code not in README
    ],
)
def test_python_runs(page: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "transformers" in code:
        pytest.importorskip("transformers", reason="the extra huggingface is not installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page}
    exec(code, names)
    assert len(names) > 2
