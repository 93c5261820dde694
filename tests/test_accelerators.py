"""What an accelerator would stumble over, by tensors without data: operands on two devices, and values that a program
waits for.

PyTorch's fake tensors know their device and shape alone. On ``meta`` they take the ways of an accelerator, and whatever
asks for a value raises: sizes that depend on one, ``if`` and ``item``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import four_tasks
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from test_building import HEADS, MODULES, TASKS, WIDTH
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ika_lightning.attention.backends import chunked_online, chunked_plain, linear
from ika_lightning.attention.graph import edges
from ika_lightning.attention.mask import Mask
from ika_lightning.data.encoders import RowBatch
from ika_lightning.data.nodes import NodeBatch
from ika_lightning.data.pairs import TranslationBatch
from ika_lightning.data.texts import TextBatch
from ika_lightning.models import GraphNetwork, inference
from ika_lightning.tasks.uncertainty import believe

DEVICE = torch.device("meta")


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def numbers(most: int, *shape: int) -> Tensor:
    return torch.randint(most, shape, device=DEVICE)


def placed(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers of the same shapes on the accelerator."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, x in table.items():
                if x is not None:
                    here = torch.empty(x.shape, dtype=x.dtype, device=DEVICE)
                    table[name] = nn.Parameter(here, x.requires_grad) if isinstance(x, nn.Parameter) else here
    return module


def of_parts(*shapes: tuple[int, ...]) -> Callable[[nn.Module], Any]:
    return lambda module: module(*(floats(*shape) for shape in shapes))


def of_spectrum(spectrum: nn.Module) -> list[Tensor]:
    mean = floats(2, HEADS, WIDTH) if spectrum.conditional else None
    feature_map, kl = spectrum(mean)
    return [feature_map(floats(2, HEADS, 7, WIDTH)), kl]


def of_layer(layer: nn.Module) -> list[Tensor]:
    """Attention with padding in training; in evaluation causal attention, and weights."""
    x = floats(7, 2, HEADS * WIDTH)
    if layer.training:
        return [layer(x, x, x, key_padding_mask=numbers(2, 2, 7) > 0, need_weights=False)[0], layer.kl]
    return [layer(x, x, x, is_causal=True, need_weights=False)[0], *layer(x, x, x)]


def of_convolution(conv: nn.Module) -> list[Tensor]:
    x, ends = floats(7, 5), numbers(7, 2, 11)
    return [conv(x, ends, floats(11, 4)), conv(x, ends[:, :0], floats(0, 4)), conv.kl]


def of_graph(net: nn.Module) -> Tensor:
    return net(floats(7, 5), numbers(7, 2, 11), *([floats(11, 2)] if net.has_edge_features else []))


def of_rows(net: nn.Module) -> Tensor:
    targets = next(net.modules()) if hasattr(net, "target") else net.members[0]
    return net(floats(5, 3), floats(4, 3), None if targets.target is None else floats(5))


def of_sentences(net: nn.Module) -> list[Tensor]:
    """All at once in training; in evaluation token by token."""
    source, target = numbers(11, 2, 7), numbers(11, 2, 5)
    if net.training:
        return [net(source, target)]
    _, state = net.decode(target[:, :2], net.start(source))
    scores, _ = net.decode(target[:, 2:], state)
    return [scores]


PAIR = ((2, HEADS, 7, WIDTH), (2, HEADS, 5, WIDTH))
#: How a module is called, by its name or the first word of it.
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "Core": lambda core: core(floats(*PAIR[0]), floats(*PAIR[1]), floats(*PAIR[1]), Mask())[0],
    **dict.fromkeys(("DirectSpectrum", "ImplicitSpectrum"), of_spectrum),
    "GaussianCopula": of_parts((2, HEADS, WIDTH)),
    **dict.fromkeys(("OddGenerator", "TwoLayers", "Linear"), of_parts((7, WIDTH))),
    "PeriodicEmbedding": of_parts((7, 3)),
    "Magnitude": of_parts((2, HEADS, 7, WIDTH)),
    "Embedding": lambda embedding: embedding(numbers(11, 2, 7)),
    **dict.fromkeys(
        ("RBFKernel", "MaternKernel", "RationalQuadraticKernel", "PeriodicKernel", "LinearKernel"), of_parts(*PAIR)
    ),
    **dict.fromkeys(
        ("DotProduct", "RBF", "ExplicitKernel", "MultiheadAttention", "IKANDirect", "IKAN", "MIKAN"), of_layer
    ),
    **dict.fromkeys(("KernelGATConv", "KernelTransformerConv"), of_convolution),
    **dict.fromkeys(("EncoderLayer", "Encoder"), lambda net: net(floats(2, 7, 8), numbers(2, 2, 7) > 0)),
    "DecoderLayer": lambda net: net(floats(2, 7, 8), floats(2, 5, 8), numbers(2, 2, 5) > 0),
    "EncoderDecoder": of_sentences,
    "GraphNetwork": of_graph,
    **dict.fromkeys(("RowTransformer", "Ensemble"), of_rows),
    "TextClassifier": lambda net: net(numbers(11, 2, 7)),
}
NOT_CALLED = {"Kernel": "abstract"}
# other starts of what is computed in the same way, and pairs of options that others have between them
SAME = ("wide", "paper", "smoothed", "one vocabulary", "direct softmax", "copula rbf")


def kind(name: str) -> str:
    return name.split()[0].rstrip(",")


def test_every_module_of_the_package_is_called() -> None:
    assert CALLS.keys() | NOT_CALLED.keys() | LOSSES.keys() == {kind(name) for name in MODULES}


def differentiated(results: Any) -> None:
    """Differentiate in all parameters that there are, at results that are where they belong."""
    tensors = [x for x in tree_leaves(results) if isinstance(x, Tensor)]
    assert tensors
    assert all(isinstance(x, FakeTensor) and x.device == DEVICE for x in tensors)
    sum(x.sum() for x in tensors if x.requires_grad).backward()


@pytest.mark.parametrize("name", [name for name in MODULES if kind(name) in CALLS and not name.endswith(SAME)])
def test_no_module_waits_or_leaves_its_device(name) -> None:
    module, call = MODULES[name](), CALLS[kind(name)]
    with FakeTensorMode():
        differentiated(call(placed(module)))
        with torch.no_grad():
            call(module.eval())


#: What a task makes of a batch, by the name of the task.
LOSSES: dict[str, Callable[[Any], Any]] = {
    "Regression": lambda task: task.loss(RowBatch(floats(7, 3), floats(7), numbers(7, 7))),
    "TextClassification": lambda task: task.loss(TextBatch(numbers(11, 5, 7), numbers(3, 5), numbers(5, 5))),
    "Translation": lambda task: task.loss(TranslationBatch(numbers(11, 3, 7), numbers(13, 3, 5), numbers(3, 3), ())),
    "NodeClassification": lambda task: task.loss(
        NodeBatch(floats(7, 5), numbers(7, 2, 11), None, numbers(3, 7), numbers(7, 3))
    ),
}
SURE = {"ensemble": 2, "likelihood": "gaussian"}


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in LOSSES), ("Regression", SURE)])
def test_no_loss_waits_or_leaves_its_device(name, options) -> None:
    task = TASKS[name].args[0](**options)
    task.configure_model()
    with FakeTensorMode():
        found = LOSSES[name](placed(task))
        differentiated([found.mean, found.samples, task.regulariser()])


#: What answers leave the package by: the network, what is made of it, and its inputs.
ANSWERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "TextProbabilities": ("TextClassifier cls", lambda net: inference.TextProbabilities(net)(numbers(11, 2, 7))),
    "NodeProbabilities": (
        "GraphNetwork", lambda net: inference.NodeProbabilities(net)(floats(7, 5), numbers(7, 2, 11), floats(11, 2))
    ),
    "NextTokens": ("EncoderDecoder", lambda net: inference.NextTokens(net)(numbers(11, 2, 7), numbers(11, 2, 5))),
    "ContextRegressor": (
        "Ensemble",
        lambda net: inference.ContextRegressor(
            net, floats(5, 3), None, lambda outputs: believe(outputs, likelihood=True, mixes=1), 1e6, 10.0, 2.0,
            widens=True,
        )(floats(4, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", inference.__all__)
def test_no_answer_waits_or_leaves_its_device(name) -> None:
    net, answer = ANSWERS[name]
    module = MODULES[net]().eval()
    with FakeTensorMode():
        differentiated(answer(placed(module)))


# --- Backends ---------------------------------------------------------------------------------------------------------

#: Operators are one opaque step to all of the above. So what they do is called by itself: forward, backward, and the
#: shapes of the tensors, which are longer than a tile of an accelerator.
QUERIES, KEYS = 2503, 2311
EXPONENT = ((2, QUERIES, 3), (2, KEYS, 3))
FACTORS = ((2, QUERIES, 5), (2, KEYS, 5), (2, KEYS, 7), (2, KEYS))
OPERATORS = {
    "chunked, with an exponent": (chunked_online, (*EXPONENT, *FACTORS)),
    "chunked": (chunked_plain, FACTORS),
    "linear": (linear, FACTORS),
}


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_operator_waits_or_leaves_its_device(name, is_causal) -> None:
    module, shapes = OPERATORS[name]
    with FakeTensorMode():
        tensors = [floats(*shape) for shape in shapes]
        out, *kept = module.forward(*tensors, 1e-5, is_causal)
        gradients = module.backward(*tensors, out, *kept, torch.empty_like(out), 1e-5, is_causal)
    assert all(x.device == DEVICE for x in (out, *kept))
    assert [(x.device, x.shape) for x in gradients] == [(DEVICE, x.shape) for x in tensors]


@pytest.mark.parametrize("graphs", [None, 1], ids=["without features", "with features"])
def test_no_operator_over_edges_waits_or_leaves_its_device(graphs) -> None:
    with FakeTensorMode():
        phases = [floats(2, 5, 3), floats(2, 5, 3), floats(2, 7, 3)]
        tensors = [*phases, numbers(5, 11), numbers(7, 11)]
        forward, backward = edges._forward, edges._backward
        if graphs:
            tensors += [floats(11, 2, 4), floats(graphs, 2, 3, 4), numbers(graphs, 11)]
            forward, backward = edges._forward_with_features, edges._backward_with_features
        out = forward(*tensors)
        gradients = backward(*tensors, out, torch.empty_like(out))
    assert out.device == DEVICE
    floating = [x for x in tensors if x.is_floating_point()]
    assert [(x.device, x.shape) for x in gradients] == [(DEVICE, x.shape) for x in floating]


# --- What it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda x: x.sum().item(), DataDependentOutputException),
        (lambda x: x if x.sum() > 0 else -x, DataDependentOutputException),
        (lambda x: x[x > 0], DynamicOutputShapeException),
        (lambda x: x.nonzero(), DynamicOutputShapeException),
        (lambda x: x + torch.ones(3), FakeTensorDeviceMismatchError),
        (lambda x: torch.cat([x, torch.zeros(2)]), FakeTensorDeviceMismatchError),
    ],
)
def test_a_wait_or_another_device_is_found(wrong, error) -> None:
    with FakeTensorMode(), pytest.raises(error):
        wrong(floats(3))


# --- Training ---------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes operations whose result a program waits for where they run on an accelerator."""

    ASKED = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name.removeprefix("aten::")
        chosen = name.startswith("index") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1:])
        )
        if name in self.ASKED or chosen:
            self.found.add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("task", four_tasks.TASKS)
def test_no_training_step_waits(task, tmp_path, monkeypatch) -> None:
    """From the batch to the gradients of the update; what Lightning and the optimizer do is theirs."""
    # a CPU is asked how many features are zero
    monkeypatch.setattr(GraphNetwork, "_drop", lambda net, x: net.dropout(x))
    four_tasks.write_files(tmp_path)
    seed_everything(1, verbose=False)
    model, data = four_tasks.build(task, tmp_path)
    waits, steps = Waits(), 0

    def noted(name: str) -> None:
        method = getattr(model, name)

        def inside(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            with waits:
                return method(*args, **kwargs)

        setattr(model, name, inside)

    for name in ("training_step", "backward", "on_before_optimizer_step"):
        noted(name)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, data)
    assert steps == 6
    assert waits.found == set()
