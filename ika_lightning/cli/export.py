"""``export``: a trained model as a file that is used without this package, and a description of what goes into it."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ika_lightning import __version__
from ika_lightning.attention import Core
from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.cli.checkpoint import read_checkpoint, restore
from ika_lightning.cli.explain import UsageError
from ika_lightning.output import check_output, open_output
from ika_lightning.protocols import Exports, Program

#: The name under which a ``.pt2`` file holds its description, too.
DESCRIPTION = "description.json"

# By this name a description tells who has written it.
_US = "ika_lightning"
# How far a file may be from the model on the example, as a share of the largest number.
_TOLERANCE = 1e-4
# What an operator may be called that PyTorch brings.
_PYTORCH = ("aten", "prim", "prims", "higher_order")


class ExportingTrainer(Trainer):
    """A trainer that can also write a trained model as a file that is used without this package."""

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str = "model.pt2",
    ) -> None:
        """Write what a checkpoint answers with as a file that needs nothing of this package.

        A ``.json`` beside it says what goes in and comes out, and how raw data is encoded.

        Args:
            model: The model.
            datamodule: Its data, of which no file is read.
            ckpt_path: The checkpoint.
            output: The file to write: ``.pt2``, a program for PyTorch (``torch.export.load``), or ``.onnx``, for any
                runtime of ONNX, which takes the extra ``onnx``. Files that are there are replaced.
        """
        file, beside = check_files(output)
        assert ckpt_path is not None
        program = load_program(model, datamodule, Path(ckpt_path), single=file.suffix == ".onnx")
        answers: dict[str, Tensor] = program.module(**program.example)
        if not all(x.isfinite().all() for x in answers.values()):
            raise UsageError(
                f"{ckpt_path} answers with nan or inf: its training has diverged; take an earlier checkpoint"
            )
        described = describe(program, answers, type(model).__name__)
        description = json.dumps(described, indent=2, ensure_ascii=False, allow_nan=False)
        form = FORMATS[file.suffix]
        with _quiet("torch", "onnxscript", "onnx_ir"):
            content = form.write(trace(program), program, list(answers), description)
            error = difference(form.load(content)(program.example), answers)
        write_files({file: content, beside: f"{description}\n".encode()})
        shapes = (
            ", ".join(f"{name} ({', '.join(map(str, shape_of(program, name, x)))})" for name, x in tensors.items())
            for tensors in (program.example, answers)
        )
        print(f"{file} and {beside}: {' -> '.join(shapes)}; within {error:.1g} of the model on an example")
        if program.note:
            print(f"note: {program.note}")


def check_files(output: str | Path) -> tuple[Path, Path]:
    """Check that a model can be written, before any work is done.

    Args:
        output: The file.

    Returns:
        The file, and the one of its description.

    Raises:
        UsageError: If there is no such format, or what writes it is not installed.
        FileExistsError: If the description would replace a file that is none.
        OSError: As :func:`~ika_lightning.output.check_output`, of either file.

    Example:
        >>> check_files("model.pkl")
        Traceback (most recent call last):
        ...
        ika_lightning.cli.explain.UsageError: cannot write model.pkl: its name says no format; give one that ends in ...
    """
    path = Path(output)
    if path.suffix not in FORMATS:
        endings = " or ".join(f"{suffix} ({form.what})" for suffix, form in FORMATS.items())
        raise UsageError(f"cannot write {output}: its name says no format; give one that ends in {endings}")
    missing = [name for name in FORMATS[path.suffix].needs if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"cannot write {output}: {path.suffix} takes {' and '.join(missing)}, which the extra {path.suffix[1:]} "
            f"brings: pip install 'ika-lightning[{path.suffix[1:]}]'; or give a name that ends in .pt2"
        )
    path, beside = check_output(path), check_output(path.with_suffix(".json"))
    if beside.is_file() and f'"written_by": "{_US} '.encode() not in beside.read_bytes():
        raise FileExistsError(f"cannot write {beside}: it is there, and describes no model; choose another --output")
    return path, beside


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, all of them or none.

    Args:
        contents: What goes into each of them.

    Raises:
        OSError: If one cannot be written; all are then what they were.
    """
    with ExitStack() as files:
        for path, content in contents.items():
            file = files.enter_context(open_output(path))
            file.write(content)
            # a disk that is full says so before anything is moved into place, at the end of the block
            file.close()


def load_program(model: LightningModule, data: LightningDataModule | None, path: Path, single: bool) -> Program:
    """Load a checkpoint, and return what it computes.

    Args:
        model: The model, without its weights.
        data: Its data module, without what it has learned.
        path: The checkpoint.
        single: Whether to compute in single precision whatever the weights have.

    Raises:
        UsageError: If the model cannot be exported, the checkpoint is not trained, or lacks the encoding of its data.
    """
    if not isinstance(model, Exports):
        raise UsageError(
            f"{type(model).__name__} cannot be exported, as it does not say what it computes: give it a method "
            "export_program, as ika_lightning.protocols.Exports has it"
        )
    checkpoint = read_checkpoint(path)
    if checkpoint["global_step"] == 0:
        raise UsageError(f"{path} has been trained for 0 updates: its weights are random; train it first")
    name = type(data).__qualname__
    if data is None or not checkpoint.get(name):
        raise UsageError(
            f"{path} does not say how its data was encoded: it holds no {name}; train with the data module, which puts "
            "what it has learned there"
        )
    restore(model, checkpoint)
    data.load_state_dict(checkpoint[name])
    if not single and any(weight.dtype == torch.float64 for weight in checkpoint["state_dict"].values()):
        model.double()
        model.load_state_dict(checkpoint["state_dict"])
    program = model.export_program(data)
    program.module.eval().requires_grad_(False)
    return program


def trace(program: Program) -> ExportedProgram:
    """Write down the operations of a program, for any sizes of its dynamic axes.

    Args:
        program: The program, whose modules are made fit for it in place.

    Raises:
        UsageError: If they cannot be written down, or one of them is not PyTorch's.
    """
    for part in program.module.modules():
        if isinstance(part, Core):
            # all backends compute the same, but some have operators that only this package brings
            part.backend = "auto"
        elif isinstance(part, ImplicitSpectrum) and part.copula is not None and part.copula.num_heads == 1:
            # a head alone is coupled with nothing, and ONNX has no tensors without numbers
            part.copula = None
    try:
        traced = torch.export.export(program.module, (), dict(program.example), dynamic_shapes=_sizes(program))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{type(program.module).__name__} cannot be exported, as what it computes depends on numbers or sizes in a "
            f"way that torch.export cannot write down: {reason}; train with a layer of this package"
        ) from error
    for node in _nodes(traced):
        # of the files that it was traced in
        node.meta.pop("stack_trace", None)
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in _PYTORCH:
            raise UsageError(
                f"{_layer_of(node)} cannot be exported, as it has an operator of its own, {node.target}; train with a "
                "layer made of PyTorch's operators"
            )
    return traced


def describe(program: Program, answers: Mapping[str, Tensor], task: str) -> dict[str, Any]:
    """Return what the ``.json`` says.

    Args:
        program: The program.
        answers: Its outputs for its example.
        task: What it was trained for.
    """

    def ports(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "shape": shape_of(program, name, tensor),
                "meaning": program.meaning[name],
            }
            for name, tensor in tensors.items()
        ]

    return {
        "task": task,
        "inputs": ports(program.example),
        "outputs": ports(answers),
        "encoding": program.encoding,
        **({"note": program.note} if program.note else {}),
        "written_by": f"{_US} {__version__}",
    }


def shape_of(program: Program, name: str, tensor: Tensor) -> list[int | str]:
    """Return the size of each axis of an input or output: a number, or the name of a dynamic axis."""
    return [program.axes[name].get(axis, size) for axis, size in enumerate(tensor.shape)]


def difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """Return the largest difference between the answers of a file and those of the model.

    Raises:
        RuntimeError: If it is too large.
    """
    errors = {name: float((found[name].double() - x.double()).abs().max()) for name, x in wanted.items()}
    for name, error in errors.items():
        # a NaN is larger than anything
        if not error <= _TOLERANCE * max(1.0, float(wanted[name].abs().max())):
            raise RuntimeError(f"the exported model gives another {name} than the model: they differ by {error}")
    return max(errors.values())


# --- Formats ----------------------------------------------------------------------------------------------------------


#: Outputs by name, of inputs by name.
Answer = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Format(NamedTuple):
    """A kind of file.

    Args:
        what: What it is for.
        write: Makes its content of a traced program, the program, the names of its outputs, and its description.
        load: Makes what answers of the content alone.
        needs: Modules that it takes, besides PyTorch.
    """

    what: str
    write: Callable[[ExportedProgram, Program, list[str], str], bytes]
    load: Callable[[bytes], Answer]
    needs: tuple[str, ...] = ()


def _write_pt2(traced: ExportedProgram, program: Program, outputs: list[str], description: str) -> bytes:
    file = io.BytesIO()
    torch.export.save(traced, file, extra_files={DESCRIPTION: description})
    return file.getvalue()


def _load_pt2(content: bytes) -> Answer:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: module(**inputs)


def _write_onnx(traced: ExportedProgram, program: Program, outputs: list[str], description: str) -> bytes:
    options: dict[str, Any] = {"output_names": outputs, "dynamic_shapes": _sizes(program)}
    try:
        with warnings.catch_warnings():
            # one size has one name, whichever axes have it
            warnings.filterwarnings("ignore", "# The axis name: .* will not be used")
            written = torch.onnx.export(traced, (), dynamo=True, verbose=False, **options)
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(f"ONNX cannot express {_culprit(traced, error)}; give a name that ends in .pt2") from error
    assert written is not None
    written.model.metadata_props[DESCRIPTION] = description
    return written.model_proto.SerializeToString()


def _load_onnx(content: bytes) -> Answer:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def answer(inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        answers = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(x) for name, x in zip(names, answers, strict=True)}

    return answer


#: What a model can be written as, by the ending of a file.
FORMATS = {
    ".pt2": Format("a program for PyTorch", _write_pt2, _load_pt2),
    ".onnx": Format("for any runtime of ONNX", _write_onnx, _load_onnx, ("onnx", "onnxscript", "onnxruntime")),
}


def _sizes(program: Program) -> dict[str, dict[int, Dim]]:
    """The dynamic axes of the inputs, as PyTorch wants to hear of them."""
    sizes = {
        label: Dim(label, max=program.most.get(label)) for axes in program.axes.values() for label in axes.values()
    }
    return {name: {axis: sizes[label] for axis, label in program.axes[name].items()} for name in program.example}


def _culprit(traced: ExportedProgram, error: Exception) -> str:
    """The operator that an error of the exporter is about, and the layer that has it."""
    found = re.search(r"call_function\[target=torch\.ops\.(\w+\.(\w+)[\w.]*)\]", str(error))
    if found is None:
        return f"this model ({str(error).strip().splitlines()[-1]})"
    # one operator may have been put down as several, with a part of its name
    layers = (_layer_of(node) for node in _nodes(traced) if found[2].strip("_") in str(node.target))
    return " of ".join([found[1], *islice(layers, 1)])


def _nodes(traced: ExportedProgram) -> Iterator[torch.fx.Node]:
    """All operations of a program; those without autocast, for instance, are in graphs of their own."""
    for part in traced.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            yield from part.graph.nodes


def _layer_of(node: torch.fx.Node) -> str:
    """The innermost module that an operation was written down in, as an error calls it."""
    *_, (path, kind) = node.meta.get("nn_module_stack", {"": ("", "the model")}).values()
    return f"{path} ({str(kind).rpartition('.')[2]})"


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Silence what libraries tell of their own work."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
