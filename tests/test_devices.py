"""What runs in a forward pass or a step makes tensors where its inputs are, draws from the generator of their device,
and does not wait for an accelerator: read from the source, since no accelerator is there to say so."""

from __future__ import annotations

import ast
from pathlib import Path

import ika_lightning

ROOT = Path(ika_lightning.__file__).parent
FILES = sorted(file for folder in ("attention", "models", "tasks") for file in (ROOT / folder).rglob("*.py"))

# functions of torch that make a tensor on the default device, unless they are told one
MAKERS = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "randperm", "tensor",
    "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
# methods that wait for what an accelerator computes
WAITS = {"cpu", "item", "numpy", "tolist"}
# what is called while a module is built, where the default device is the one that is wanted
BUILDING = {"__init__", "reset_parameters", "_draw"}

#: Each finding that is right as it is, by file, function and call, with the reason.
ALLOWED = {
    ("attention/start.py", "normal_points", "Generator"): "it is one of the device that it is told",
    ("attention/start.py", "normal_points", "item"): "a seed, while parameters are made",
    ("attention/core.py", "kl", "zeros"): "of a core without parameters, which is on no device",
    ("attention/saved.py", "add_exact_part", "full"): "a state dict is copied to where the parameters are",
    ("attention/saved.py", "add_exact_part", "ones"): "the same",
    ("attention/saved.py", "add_exact_part", "tensor"): "the same",
    ("attention/regulariser.py", "attention_kl", "zeros"): "of a model without attention",
    ("attention/regulariser.py", "_claim", "tolist"): "reentrant checkpoints of several forwards of a layer in a step",
    ("attention/huggingface.py", "_dummy_inputs", "zeros"): "all inputs are then moved to the model's device",
    ("attention/backends/calibration.py", "calibrate", "tensor"): "it solves for prices, on the host",
    ("attention/backends/calibration.py", "calibrate", "tolist"): "the same",
    ("attention/backends/calibration.py", "_least_squares", "tensor"): "the same",
    ("attention/graph/edges.py", "_edges_of_graphs", "tolist"): "sizes of the graphs, once a call, to cut blocks by",
    ("models/decoding.py", "step", "tolist"): "the search decides on the host which sentences go on",
    ("models/decoding.py", "_collect", "tolist"): "translations that have ended are lists",
    ("tasks/intervals.py", "end", "cpu"): "once a validation, after its last batch",
    ("tasks/node_classification.py", "export_program", "arange"): "an example for the exporter, on the host",
    ("tasks/node_classification.py", "export_program", "linspace"): "the same",
    ("tasks/regression.py", "export_program", "linspace"): "the same",
    ("tasks/text_classification.py", "export_program", "full"): "the same",
    ("tasks/text_classification.py", "export_program", "ones"): "the same",
    ("tasks/translation.py", "export_program", "full"): "the same",
    ("tasks/regression.py", "_in_units", "cpu"): "predictions go into a file; training does without",
    ("tasks/regression.py", "pictures", "cpu"): "pictures are drawn on the host",
    ("tasks/text_classification.py", "pictures", "cpu"): "the same",
    ("tasks/text_classification.py", "attention_names", "tolist"): "names beside a picture",
    ("tasks/classes.py", "describe_confusion", "item"): "a text for people, at the end",
    ("tasks/classes.py", "describe_confusion", "tolist"): "the same",
    ("tasks/classes.py", "weigh_classes", "tensor"): "once, as a training starts, which moves it",
    ("tasks/scores.py", "_count", "tensor"): "sacrebleu counts on the host; the sum is moved to the metric's device",
    ("tasks/scores.py", "compute", "tensor"): "once an epoch, of a number that the host computes",
    ("tasks/scores.py", "compute", "tolist"): "the same",
    ("tasks/start.py", "carry_rows", "tensor"): "indices are moved to the tables that they select from",
    ("tasks/translation.py", "measure", "tolist"): "translations are texts, which the host compares",
    ("tasks/translation.py", "predict_step", "tolist"): "the same",
    ("tasks/uncertainty.py", "conformal_radius", "item"): "of scores that are on the host",
}


def findings(file: Path) -> set[tuple[str, str, str]]:
    """Calls of a file that may be wrong: file, function and what is called."""
    found = set()
    stack: list[str] = []

    class Visitor(ast.NodeVisitor):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            stack.append(node.name)
            self.generic_visit(node)
            stack.pop()

        def visit_Call(self, node: ast.Call) -> None:
            self.generic_visit(node)
            if not isinstance(node.func, ast.Attribute) or not stack or stack[-1] in BUILDING:
                return
            name, of = node.func.attr, node.func.value
            of_torch = isinstance(of, ast.Name) and of.id == "torch"
            told = any(keyword.arg in ("device", "generator") for keyword in node.keywords)
            if (of_torch and (name == "Generator" or (name in MAKERS and not told))) or (
                not of_torch and name in WAITS and not node.args
            ):
                found.add((file.relative_to(ROOT).as_posix(), stack[-1], name))

    Visitor().visit(ast.parse(file.read_text()))
    return found


def test_there_are_files() -> None:
    assert len(FILES) > 30


def test_forward_passes_stay_where_their_inputs_are() -> None:
    found = set().union(*map(findings, FILES))
    assert found - ALLOWED.keys() == set()
    assert ALLOWED.keys() - found == set(), "an exception that there is no need for"


def test_it_finds_what_it_looks_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("test_devices.ROOT", tmp_path)
    (tmp_path / "wrong.py").write_text(
        "def forward(x):\n"
        "    generator = torch.Generator()\n"
        "    y = torch.arange(3) + torch.randn(2, device=x.device) + torch.zeros(2)\n"
        "    return x.sum().item() + x.tolist()[0] + x.cpu() + x.split(1)\n"
        "def reset_parameters(self):\n"
        "    torch.zeros(3)\n"
    )
    found = {name for _, _, name in findings(tmp_path / "wrong.py")}
    assert found == {"Generator", "arange", "zeros", "item", "tolist", "cpu"}
