"""What a command imports before it knows that it needs it: next to nothing that takes long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ika_lightning.cli import startup
from ika_lightning.lazy import Lazy

# The modules that take longest to import, by what they are for.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
TABLES = {"pandas", "pyarrow", "sklearn"}
GRAPHS = {"torch_geometric", "networkx"}
OTHERS = {"transformers", "scipy.signal", "scipy.stats", "sacrebleu", "pooch", "requests", "optuna", "onnx"}
ALL = COMPILER | TABLES | GRAPHS | OTHERS

MAIN = (
    "from ika_lightning.cli import main\ntry: main({words!r})\nexcept SystemExit as end: assert not end.code, end.code"
)


def imported_by(code: str, folder: Path) -> set[str]:
    """Those of ALL that a new process has imported after some code; a module that stands in for another has no file."""
    code += "\nimport sys, json\n"
    code += "there = [name for name, module in sys.modules.items() if getattr(module, '__file__', None)]\n"
    code += "json.dump(there, open('there.json', 'w'))"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return ALL & set(json.loads((folder / "there.json").read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--help"],
        ["fit", "--model.help", "NodeClassification"],
        ["fit", "--model", "Regression", "--model.attention.help", "IKAN"],
    ],
)
def test_help_imports_what_it_shows(words: list[str], tmp_path: Path) -> None:
    assert imported_by(MAIN.format(words=words), tmp_path) == set()


def test_help_of_a_convolution_imports_graphs(tmp_path: Path) -> None:
    words = ["fit", "--model", "NodeClassification", "--model.conv.help", "KernelGATConv"]
    assert "torch_geometric" in imported_by(MAIN.format(words=words), tmp_path)


def test_training_on_a_table_imports_no_graphs(tmp_path: Path) -> None:
    words = ["fit", "--model", "Regression", "--data", "RegressionData", "--data.name", "co2"]
    words += ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    # optimizers import the compiler
    assert imported_by(MAIN.format(words=words), tmp_path) - COMPILER == TABLES - {"sklearn"}


@pytest.mark.parametrize("module", ["ika_lightning.attention", "ika_lightning.models"])
def test_layers_import_torch_alone(module: str, tmp_path: Path) -> None:
    code = f"import {module}\nimport sys\nassert 'lightning' not in sys.modules and 'torchmetrics' not in sys.modules"
    assert imported_by(code, tmp_path) == set()


def test_data_and_tasks_import_no_tables_and_no_graphs(tmp_path: Path) -> None:
    code = "import ika_lightning.data, ika_lightning.tasks, ika_lightning.callbacks"
    assert imported_by(code, tmp_path) & (TABLES - {"sklearn"} | GRAPHS | {"sacrebleu", "pooch", "optuna"}) == set()


def test_what_was_left_out_is_there_when_it_is_used(tmp_path: Path) -> None:
    """All three, in a process of its own, for Lightning is imported once in each."""
    code = """
import sys
from ika_lightning.cli.startup import import_lightning
import_lightning()
import lightning.fabric.wrappers as wrappers, torch, torchmetrics.functional.text.bert as bert
assert not {"transformers", "scipy.signal", "torch._dynamo"} & sys.modules.keys()
layer = torch.nn.Linear(2, 2)
assert not isinstance(layer, wrappers.OptimizedModule) and "torch._dynamo" not in sys.modules
compiled = torch.compile(layer, backend="eager")
assert isinstance(compiled, wrappers.OptimizedModule) and not isinstance(layer, wrappers.OptimizedModule)
assert wrappers._unwrap_compiled(compiled)[0] is layer
import scipy.signal, transformers
assert scipy.signal.windows.hann(3).tolist() == [0, 1, 0]
assert bert.AutoModel.from_pretrained.__func__ is transformers.AutoModel.from_pretrained.__func__
"""
    pytest.importorskip("transformers", reason="one of the three is a class of transformers")
    imported_by(code, tmp_path)


# What Lightning imports on the way, as torchvision has it: of modules that are stood in for, modules within them.
VISION = """
from torch._dynamo.utils import is_compile_supported
import torch._dynamo.config
import transformers.models.bert
"""


def test_others_import_what_is_in_a_module_that_is_left_out(tmp_path: Path) -> None:
    """As of torchvision, in the release that Lightning finds by its metadata, and imports for metrics of pictures."""
    pytest.importorskip("transformers", reason="what it imports is of transformers, too")
    (tmp_path / "torchvision-0.26.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.26.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.26.0\n")
    (tmp_path / "torchvision" / "models").mkdir(parents=True)
    (tmp_path / "torchvision" / "__init__.py").write_text(VISION)
    (tmp_path / "torchvision" / "models" / "__init__.py").write_text("resnet50 = 'the network'")
    code = """
import sys
from ika_lightning.cli.startup import import_lightning
import_lightning()
left_out = [name for name in sys.modules if name.startswith(("torch._dynamo", "transformers", "torchvision"))]
assert left_out == [], left_out
import torch, torchmetrics
arniqa = sys.modules["torchmetrics.functional.image.arniqa"]
assert "_dynamo" not in vars(torch)
assert arniqa._TORCHVISION_AVAILABLE and arniqa.resnet50._found() == 'the network'
import torchvision, torch._dynamo.utils
assert torchvision.is_compile_supported is torch._dynamo.utils.is_compile_supported
"""
    imported_by(code, tmp_path)


def test_what_is_used_while_others_are_imported_is_there(tmp_path: Path) -> None:
    """A decorator of the compiler, at the import of a module that uses it."""
    (tmp_path / "package" / "inner").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("def add(x):\n    return x + 1")
    (tmp_path / "package" / "inner" / "__init__.py").write_text("number = 3\ndef double(x):\n    return 2 * x")
    code = """
import sys
from ika_lightning.cli import startup
with startup._stood_in_for(["package"]):
    from package import add
    from package.inner import double
    import package.inner as before
    assert isinstance(sys.modules["package"], startup._StandIn)
    assert (double(4), add(4)) == (8, 5)
    import package.inner as after
    assert isinstance(before, startup._StandIn) and after.number == 3
assert sys.modules["package.inner"] is after and not any(type(x).__name__ == "_StandInFinder" for x in sys.meta_path)
"""
    imported_by(code, tmp_path)


def test_a_function_is_kept_from_the_compiler_once_there_is_one() -> None:
    seen: list[bool] = []

    @startup._disable_once_compiling
    def compiling(x: torch.Tensor) -> torch.Tensor:
        """Say whether this is compiled."""
        seen.append(torch.compiler.is_compiling())
        return x + 1

    assert compiling.__doc__ == "Say whether this is compiled."
    torch.compile(lambda x: compiling(x) * 2, backend="eager")(torch.ones(2))
    assert seen == [False]


def test_a_lazy_module_that_is_missing_says_so_at_its_first_use() -> None:
    missing = Lazy("there_is_no_such_module")
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        missing.anything  # noqa: B018
