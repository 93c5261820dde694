"""The divergence of spectra from their priors: of which forward it is, and that each gradient arrives once."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from ika_lightning.attention import IKAN, MIKAN, DotProduct, IKANDirect, attention_kl

KINDS = pytest.mark.parametrize("kind", [IKAN, MIKAN])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moved(kind: Callable[..., nn.Module], **options) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(12, 2, num_samples=5, batch_first=True, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    return {name: x.grad for name, x in layer.core.spectrum.named_parameters() if x.grad is not None}


class Stack(nn.Module):
    """Layers of which a step runs some."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, used: list[int]) -> Tensor:
        for place in used:
            x = x + self.layers[place](x, x, x)[0]
        return x


@KINDS
@pytest.mark.parametrize("used", [[0], [1], [], [0, 1]])
def test_a_layer_that_a_step_leaves_out_has_no_part_in_it(kind, used: list[int]) -> None:
    """As with LayerDrop. What is left of it has a graph that is gone."""
    model, x = Stack([moved(kind), moved(kind)]), randn(1, 3, 5, 12)
    (model(x, [0, 1]).square().sum() + attention_kl(model)).backward()
    model.zero_grad()
    out = model(x, used)
    kl = attention_kl(model)
    (out.square().sum() + kl).backward() if used else None
    alone = sum(model.layers[place].kl for place in used) if used else model.layers[0].kl + model.layers[1].kl
    assert_close(kl, alone)
    for place, layer in enumerate(model.layers):
        assert bool(gradients(layer)) is (place in used)


@KINDS
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_is_left_out_under_checkpoints(kind, reentrant: bool) -> None:
    """A checkpoint runs the forward anew within the backward, which is no step of its own."""
    found = []
    for checkpointed in (False, True):
        model, x = Stack([moved(kind), moved(kind)]), randn(1, 3, 5, 12).requires_grad_()
        for used in ([0, 1], [0]):
            model.zero_grad()
            torch.manual_seed(1)
            out = x
            for place in used:
                layer = model.layers[place]
                run = lambda u, layer=layer: layer(u, u, u)[0]  # noqa: E731
                out = out + (checkpoint(run, out, use_reentrant=reentrant) if checkpointed else run(out))
            kl = attention_kl(model)
            (out.square().sum() + 3.0 * kl).backward()
        assert not attention_kl(model).requires_grad
        assert not gradients(model.layers[1])
        found.append((kl.detach(), gradients(model.layers[0])))
    assert_close(*found)


@KINDS
def test_after_the_backward_it_is_a_number_to_log(kind) -> None:
    layer, x = moved(kind), randn(1, 3, 5, 12)
    out = layer(x, x, x)[0]
    before = attention_kl(layer)
    # read twice, as by a loss and a log, it is the same
    assert attention_kl(layer).equal(before) and attention_kl(layer).requires_grad
    (out.sum() + before).backward()
    after = attention_kl(layer)
    assert after.equal(before.detach()) and not after.requires_grad
    layer(x, x, x)
    assert attention_kl(layer).requires_grad


def test_layers_that_learn_nothing_of_it_stay_in_the_sum() -> None:
    fixed, other, x = moved(IKAN).requires_grad_(False), moved(IKAN), randn(1, 3, 5, 12)
    model = nn.ModuleList([fixed, other, DotProduct(12, 2).double(), moved(IKANDirect)])
    for _ in range(2):
        out = sum(layer(x, x, x)[0].sum() for layer in model)
        kl = attention_kl(model)
        assert_close(kl, fixed.kl + other.kl)
        (out + kl).backward()
        assert_close(attention_kl(model), kl.detach())


@KINDS
@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("read", [[0, 1, 2], [0], [2], [1, 2]])
def test_reentrant_checkpoints_of_several_forwards(kind, conditional: bool, read: list[int]) -> None:
    """Two towers with the same weights, or several losses before one backward."""
    plain = moved(kind)
    if not conditional:
        plain.core.spectrum.conditional, plain.core.spectrum.encoder = False, None
    again = copy.deepcopy(plain)
    inputs = [randn(seed, 3, 5, 12).requires_grad_() for seed in range(3)]

    def loss(layer: nn.Module, reentrant: bool) -> Tensor:
        torch.manual_seed(1)
        total = torch.zeros((), dtype=torch.float64)
        for place, x in enumerate(inputs):
            out = checkpoint(lambda u: layer(u, u, u)[0], x, use_reentrant=reentrant)
            total = total + (place + 1) * out.square().sum()
            if place in read:
                total = total + (place + 2) * attention_kl(layer)
        return total

    loss(plain, False).backward()
    loss(again, True).backward()
    assert gradients(plain).keys() == gradients(again).keys()
    for name, gradient in gradients(plain).items():
        assert_close(gradients(again)[name], gradient, msg=name)


@KINDS
def test_a_forward_without_gradients_does_not_come_between_a_checkpoint_and_its_backward(kind) -> None:
    """As of a teacher, or for a log."""
    plain, x = moved(kind), randn(1, 3, 5, 12).requires_grad_()
    again = copy.deepcopy(plain)
    for layer, reentrant in ((plain, False), (again, True)):
        torch.manual_seed(1)
        out = checkpoint(lambda u, layer=layer: layer(u, u, u)[0], x, use_reentrant=reentrant)
        total = out.square().sum() + 3.0 * attention_kl(layer)
        with torch.no_grad():
            layer(2 * x, 2 * x, 2 * x)
        total.backward()
    for name, gradient in gradients(plain).items():
        assert_close(gradients(again)[name], gradient, msg=name)


@KINDS
def test_a_batch_without_sequences_has_none(kind) -> None:
    layer = moved(kind)
    layer(*[torch.zeros(0, 3, 12, dtype=torch.float64)] * 3)
    kl = attention_kl(layer)
    assert kl == 0.0
    kl.backward()
    assert all(gradient.eq(0.0).all() for gradient in gradients(layer).values())


def test_what_no_backward_asks_for_is_forgotten() -> None:
    layer, x = moved(IKAN), randn(1, 3, 5, 12)
    with torch.no_grad():
        for _ in range(100):
            layer(x, x, x)
    assert len(layer.core.regulariser._leaves) < 100
