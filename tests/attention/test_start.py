"""Where a layer is built says nothing of what it starts with."""

import copy

import pytest
import torch
from torch import nn

from ika_lightning.attention import (
    IKAN,
    MIKAN,
    RBF,
    DotProduct,
    ExplicitKernel,
    IKANDirect,
    KernelGATConv,
    KernelTransformerConv,
    LinearKernel,
    PeriodicKernel,
    RationalQuadraticKernel,
)

BUILDS = {
    "DotProduct": lambda: DotProduct(20, 4),
    "RBF": lambda: RBF(20, 4),
    "Matern": lambda: ExplicitKernel(20, 4),
    "Periodic": lambda: ExplicitKernel(20, 4, kernel=PeriodicKernel),
    "RationalQuadratic": lambda: ExplicitKernel(20, 4, kernel=RationalQuadraticKernel),
    "Linear": lambda: ExplicitKernel(20, 4, kernel=LinearKernel),
    "IKANDirect": lambda: IKANDirect(20, 4),
    "IKANDirect, paper": lambda: IKANDirect(20, 4, init="paper"),
    "IKAN": lambda: IKAN(20, 4),
    "MIKAN": lambda: MIKAN(20, 4, stationary=True),
    "KernelGATConv": lambda: KernelGATConv(7, 5, heads=3, edge_dim=2),
    "KernelGATConv, copula": lambda: KernelGATConv(7, 5, heads=3, spectrum="copula"),
    "KernelTransformerConv": lambda: KernelTransformerConv(7, 5, heads=3, spectrum="implicit"),
}


def each(module: nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()


@pytest.mark.parametrize("reset", [lambda module: module.reset_parameters(), each], ids=["outermost", "each"])
@pytest.mark.parametrize("name", BUILDS)
def test_a_layer_built_on_meta_starts_by_the_law_of_a_plain_one(name, reset) -> None:
    torch.manual_seed(0)
    plain = BUILDS[name]()
    with torch.device("meta"):
        layer = BUILDS[name]()
    assert {x.device.type for x in [*layer.parameters(), *layer.buffers()]} == {"meta"}
    layer.to_empty(device="cpu")
    for x in [*layer.parameters(), *layer.buffers()]:
        x.data.fill_(torch.nan)
    reset(layer)
    # the largest of hundreds of numbers, and their spread, tell laws apart; constants are the same
    tensors, expected = dict(layer.named_parameters()) | dict(layer.named_buffers()), dict(plain.named_parameters())
    for key, theirs in (expected | dict(plain.named_buffers())).items():
        ours = tensors[key].detach()
        assert ours.isfinite().all(), key
        if theirs.detach().std(correction=0) == 0.0:
            assert ours.equal(theirs), key
        elif theirs.numel() >= 100:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.25), key


@pytest.mark.parametrize("name", BUILDS)
def test_a_seed_repeats_what_a_reset_draws(name) -> None:
    layer = BUILDS[name]()
    other = copy.deepcopy(layer)
    for module in (layer, other):
        torch.manual_seed(3)
        module.reset_parameters()
    assert all(a.equal(b) for a, b in zip(layer.state_dict().values(), other.state_dict().values(), strict=True))


def test_points_are_drawn_by_the_generator_of_their_device(monkeypatch) -> None:
    from ika_lightning.attention.start import normal_points

    asked, real = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: asked.append(torch.device(device).type) or real(device))
    normal_points(2, 3, 5, torch.device("cpu"))
    with torch.device("meta"):
        assert normal_points(2, 3, 5).device.type == "meta"
    assert asked == ["cpu"]
