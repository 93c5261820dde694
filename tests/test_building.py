"""Every module of the package can be built on any device, and starts again by the law that it was built with."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import four_tasks
import pytest
import torch
from lightning.fabric.utilities.init import _materialize_meta_tensors
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from scipy.stats import ks_2samp
from torch import Tensor, nn

import ika_lightning
from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    Core,
    DirectSpectrum,
    DotProduct,
    ExplicitKernel,
    GaussianCopula,
    IKANDirect,
    ImplicitSpectrum,
    KernelGATConv,
    KernelTransformerConv,
    MultiheadAttention,
)
from ika_lightning.attention.implicit import OddGenerator
from ika_lightning.attention.kernels import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RationalQuadraticKernel,
    RBFKernel,
)
from ika_lightning.attention.magnitude import Magnitude
from ika_lightning.attention.start import Linear, TwoLayers
from ika_lightning.models import (
    DecoderLayer,
    Encoder,
    EncoderDecoder,
    EncoderLayer,
    Ensemble,
    GraphNetwork,
    PeriodicEmbedding,
    RowTransformer,
    TextClassifier,
)
from ika_lightning.models.base import Embedding
from ika_lightning.tasks import NodeClassification, Regression, TextClassification, Translation

HEADS, WIDTH = 3, 5
SIZES = {"width": 8, "depth": 1, "num_heads": 2}
FEW = {"num_samples": 7}

LAYERS: dict[str, Callable[..., MultiheadAttention]] = {
    "DotProduct": DotProduct,
    "RBF": partial(RBF, p="learned"),
    "ExplicitKernel": partial(ExplicitKernel, kernel=PeriodicKernel),
    "MultiheadAttention": partial(
        MultiheadAttention, core=lambda h, d: Core(h, d, spectrum=DirectSpectrum(h, d, num_samples=7), p="learned")
    ),
    **{
        f"{kind.__name__} {init}": partial(kind, init=init, **FEW)
        for kind in (IKANDirect, IKAN, MIKAN)
        for init in ("softmax", "rbf", "wide", "paper")
    },
    "MIKAN smoothed": partial(MIKAN, init="rbf", smoothing=0.3, stationary=True, **FEW),
}
CONVS = {
    f"{kind.__name__} {spectrum} {init}": partial(kind, spectrum=spectrum, init=init, **FEW)
    for kind in (KernelGATConv, KernelTransformerConv)
    for spectrum in ("direct", "copula")
    for init in ("softmax", "rbf")
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "EncoderLayer": partial(EncoderLayer, 8, 2, MIKAN, ffn_width=7),
    "Encoder": partial(Encoder, attention=IKAN, **SIZES),
    "DecoderLayer": partial(DecoderLayer, 8, 2, MIKAN, DotProduct, ffn_width=7),
    "EncoderDecoder": partial(EncoderDecoder, 11, 13, attention=MIKAN, **SIZES),
    "EncoderDecoder, one vocabulary": partial(EncoderDecoder, 11, attention=DotProduct, **SIZES),
    "GraphNetwork": partial(GraphNetwork, 5, 3, KernelGATConv, width=4, num_heads=2, num_edge_features=2),
    "RowTransformer": partial(RowTransformer, 3, attention=MIKAN, targets=True, **SIZES),
    "RowTransformer periodic": partial(RowTransformer, 3, attention=MIKAN, embedding="periodic", **SIZES),
    "PeriodicEmbedding": partial(PeriodicEmbedding, 3, 8),
    "Ensemble": partial(Ensemble, partial(RowTransformer, 3, attention=MIKAN, outputs=2, **SIZES), 2),
    **{
        f"TextClassifier {pooling}": partial(TextClassifier, 11, 3, attention=MIKAN, pooling=pooling, **SIZES)
        for pooling in ("cls", "attention")
    },
}


def network_of(task: Callable[..., nn.Module]) -> nn.Module:
    """What a task builds once it has been told of the data, as Lightning lets it, inside the device's context."""
    model = task()
    model.configure_model()
    owned = [name for name, _ in model.named_parameters() if not name.startswith("net.")]
    assert owned == []
    return model.net


TASKS: dict[str, Callable[[], nn.Module]] = {
    "Regression": partial(
        network_of,
        partial(Regression, **SIZES, num_features=3, num_context=7, target_mean=0.0, target_std=1.0),
    ),
    "TextClassification": partial(
        network_of, partial(TextClassification, **SIZES, pooling="cls", num_tokens=11, classes=["a", "b", "c"])
    ),
    "Translation": partial(network_of, partial(Translation, **SIZES, source_vocabulary=11, target_vocabulary=13)),
    "NodeClassification": partial(
        network_of,
        partial(NodeClassification, width=4, num_heads=2, num_features=5, num_edge_features=0, num_classes=3),
    ),
}
PARTS: dict[str, Callable[[], nn.Module]] = {
    "Core": lambda: Core(HEADS, WIDTH, kernel=RBFKernel(HEADS, WIDTH), p="learned"),
    "DirectSpectrum": lambda: DirectSpectrum(HEADS, WIDTH, 7),
    "ImplicitSpectrum": lambda: ImplicitSpectrum(HEADS, WIDTH, 7),
    "GaussianCopula": lambda: GaussianCopula(HEADS, WIDTH),
    "OddGenerator": lambda: OddGenerator(WIDTH, 0.3),
    "Magnitude": lambda: Magnitude(HEADS, "learned"),
    "TwoLayers": lambda: TwoLayers(WIDTH, 7, 3, nn.init.zeros_),
    "Linear": lambda: Linear(WIDTH, 3).starting(nn.init.xavier_uniform_),
    "Embedding": lambda: Embedding(11, WIDTH, padding_idx=0).starting(std=0.3),
    "Kernel": lambda: Kernel(HEADS, WIDTH),
    "RBFKernel": lambda: RBFKernel(HEADS, WIDTH, 0.7),
    "MaternKernel": lambda: MaternKernel(HEADS, WIDTH),
    "RationalQuadraticKernel": lambda: RationalQuadraticKernel(HEADS, WIDTH),
    "PeriodicKernel": lambda: PeriodicKernel(HEADS, WIDTH),
    "LinearKernel": lambda: LinearKernel(HEADS, WIDTH),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    **PARTS,
    **{name: partial(layer, HEADS * WIDTH, HEADS) for name, layer in LAYERS.items()},
    **{name: partial(conv, 5, 3, 2, edge_dim=4) for name, conv in CONVS.items()},
    **NETWORKS,
    **TASKS,
}
every_module = pytest.mark.parametrize("name", MODULES)

NOT_BUILT = {
    "KernelConv": "a base without a constructor of its own",
    "Network": "a base without parts",
    "Spectrum": "abstract",
    "Task": "abstract",
    "CorpusScore": "a metric, which has no parameters",
    "WeightedMean": "a metric, which has no parameters",
    "ContextRegressor": "what a network that is built already answers, for an export",
    "NextTokens": "what a network that is built already answers, for an export",
    "PretrainedClassifier": "an encoder of transformers, whose weights and buffers are read, not drawn",
    "SpectralDraws": "what a network that is built already answers, several times",
    "NodeProbabilities": "what a network that is built already answers, for an export",
    "TextProbabilities": "what a network that is built already answers, for an export",
}


def test_the_list_is_that_of_the_package() -> None:
    found = set()
    for info in pkgutil.walk_packages(ika_lightning.__path__, "ika_lightning."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        found |= {
            name
            for name, part in vars(module).items()
            if inspect.isclass(part) and issubclass(part, nn.Module) and part.__module__ == info.name
            if not name.startswith("_")
        }
    assert len(found) > 30
    built = {name.split()[0].rstrip(",") for name in MODULES}
    assert found - NOT_BUILT.keys() == built


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in [*module.named_parameters(), *module.named_buffers()]}


def drawn(times: int, build: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    several = [build() for _ in range(times)]
    return {name: torch.stack([one[name] for one in several]).flatten() for name in several[0]}


def as_a_whole(module: nn.Module) -> None:
    """Materialise a module by its own reset."""
    forget(module.to_empty(device="cpu"))
    module.reset_parameters()


def each_that_can(module: nn.Module) -> None:
    """Materialise a module, and reset all modules that can be, an inner one after an outer one."""
    forget(module.to_empty(device="cpu"))
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()


def each_that_must(module: nn.Module) -> None:
    """Materialise each module that holds something and reset it, with all else without data: as Lightning does."""
    _materialize_meta_tensors(module.to("meta"), torch.device("cpu"))


def forget(module: nn.Module) -> None:
    with torch.no_grad():
        for part in [*module.parameters(), *module.buffers()]:
            part.fill_(math.nan)


@every_module
def test_it_is_built_without_data_and_materialised(name: str) -> None:
    torch.manual_seed(0)
    build = MODULES[name]
    with torch.device("meta"):
        module = build()
    assert module.training
    assert state(module) and all(x.is_meta for x in state(module).values())

    def materialised(materialise: Callable[[nn.Module], None]) -> dict[str, Tensor]:
        materialise(module)
        return state(module)

    times = 15
    expected = drawn(times, lambda: state(build()))
    for way in (as_a_whole, each_that_can, each_that_must):
        for parameter, found in drawn(times, partial(materialised, way)).items():
            # constants are the same, and what is drawn has the same law
            same = found.equal(expected[parameter])
            assert same or ks_2samp(found, expected[parameter]).pvalue > 1e-6, (way.__name__, parameter)


@every_module
def test_a_state_is_all_that_a_module_without_data_needs(name: str) -> None:
    """As large models are loaded: built on ``meta``, then given the tensors of a file."""
    torch.manual_seed(0)
    other = MODULES[name]()
    with torch.device("meta"):
        module = MODULES[name]()
    # nothing is told of metrics, which are made anew
    module.load_state_dict(other.state_dict(), assign=True)
    for part, found in state(module).items():
        assert found.equal(state(other)[part]), part


@every_module
def test_the_same_seed_gives_the_same_parameters(name: str) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(7)
        found.append(state(MODULES[name]()))
    assert all(first.equal(found[1][parameter]) for parameter, first in found[0].items())


@every_module
def test_a_reset_keeps_the_parameters_themselves(name: str) -> None:
    module = MODULES[name]()
    before = {parameter: x for parameter, x in module.named_parameters()}
    module.reset_parameters()
    assert all(x is before[parameter] for parameter, x in module.named_parameters())


class DrawnLater(SingleDeviceStrategy):
    """Builds the network without data, and draws its parameters when it is to be trained."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        with torch.device("meta"):
            yield

    def setup(self, trainer: Trainer) -> None:
        if trainer.training:
            assert all(parameter.is_meta for parameter in self.lightning_module.parameters())
        _materialize_meta_tensors(self.lightning_module, self.root_device)
        super().setup(trainer)


def trained(folder: Path, model: Callable[[], LightningModule], data: LightningDataModule) -> LightningModule:
    trainer = Trainer(
        default_root_dir=folder, strategy=DrawnLater(device="cpu"), max_steps=1, logger=False, num_sanity_val_steps=1,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=1,
    )  # fmt: skip
    with trainer.init_module():
        built = model()
    trainer.fit(built, data)
    assert all(math.isfinite(value) for value in trainer.test(built, data, verbose=False)[0].values())
    return built


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("task", four_tasks.TASKS)
def test_a_task_is_built_without_data_and_trained(task, tmp_path) -> None:
    four_tasks.write_files(tmp_path)
    _, data = four_tasks.build(task, tmp_path)
    model = trained(tmp_path, lambda: four_tasks.build(task, tmp_path)[0], data)
    assert all(x.isfinite().all() and x.device.type == "cpu" for x in state(model).values())
    if isinstance(model, Regression):
        assert model.context.equal(data.context)
        assert model.context_target.equal(data.context_target)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_starts_from_weights_is_not_built_without_data(tmp_path) -> None:
    four_tasks.write_files(tmp_path)
    model, data = four_tasks.build("regression", tmp_path)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_steps=1, limit_val_batches=0, **quiet)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    start = str(tmp_path / "first.ckpt")
    with pytest.raises(ValueError, match=r"first.ckpt has weights to start from, but the strategy builds the network"):
        trained(tmp_path, lambda: four_tasks.build("regression", tmp_path, init_from=start)[0], data)
