"""Kernel attention by tiles, with an exponent and without, forwards and backwards, against the reference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import chunked, tiles
from ika_lightning.attention.backends.tiles import seen_maximum, weigh

has_exponent = pytest.mark.parametrize("has_exponent", [False, True], ids=["square", "exponent and square"])


@pytest.fixture(params=[3, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small tiles leave ragged edges on both axes; large ones hold everything."""
    monkeypatch.setattr(tiles, "TILE", request.param)
    return int(request.param)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def arguments(has_exponent: bool, *lead: int, n: int, m: int, features: int, width: int) -> list[Tensor]:
    """Features, values and magnitudes; before them, what the exponent is a product of."""
    tensors = [draw(*lead, n, features), draw(*lead, m, features), draw(*lead, m, width), draw(*lead, m)]
    return [draw(*lead, n, 2, seed=1), draw(*lead, m, 2, seed=2), *tensors] if has_exponent else tensors


def attention(backend: str, floor: float, is_causal: bool) -> Callable[..., Tensor]:
    """The operation, of the tensors in the order of the operators' arguments."""

    def attend(*tensors: Tensor) -> Tensor:
        query, key = tensors[:-4] or (None, None)
        options = {"floor": floor, "is_causal": is_causal, "backend": backend}
        return kernel_attention(*tensors[-4:], query=query, key=key, **options)

    return attend


def operator(floor: float, is_causal: bool) -> Callable[..., Tensor]:
    """The operators themselves, which have an axis for heads."""

    def attend(*tensors: Tensor) -> Tensor:
        out, *_ = (chunked._plain if len(tensors) == 4 else chunked._online)(*tensors, floor, is_causal)
        return out

    return attend


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@has_exponent
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize(("n", "m"), [(7, 11), (11, 7), (13, 13), (1, 5), (5, 1)])
def test_equals_the_reference(tile: int, n: int, m: int, floor: float, is_causal: bool, has_exponent: bool) -> None:
    tensors = arguments(has_exponent, 2, 3, n=n, m=m, features=4, width=5)
    tensors[-1] *= 30
    ours = with_gradients(attention("chunked", floor, is_causal), tensors)
    assert_close(ours, with_gradients(attention("reference", floor, is_causal), tensors))


@has_exponent
@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(tile: int, is_causal: bool, has_exponent: bool) -> None:
    tensors = arguments(has_exponent, 2, n=7, m=5, features=3, width=2)
    assert torch.autograd.gradcheck(operator(0.1, is_causal), [x.requires_grad_() for x in tensors])


@has_exponent
@pytest.mark.parametrize("is_causal", [False, True])
def test_second_derivatives(tile: int, is_causal: bool, has_exponent: bool) -> None:
    tensors = arguments(has_exponent, 2, n=4, m=5, features=2, width=2)
    assert torch.autograd.gradgradcheck(operator(0.1, is_causal), [x.requires_grad_() for x in tensors])


@has_exponent
def test_tiles_above_the_diagonal_are_never_made(monkeypatch: pytest.MonkeyPatch, has_exponent: bool) -> None:
    """Their keys could hold anything, so they hold NaN."""
    monkeypatch.setattr(tiles, "TILE", 4)
    tensors = arguments(has_exponent, 1, n=12, m=12, features=3, width=2)
    of_keys = tensors[1:] if not has_exponent else [tensors[1], *tensors[3:]]
    for x in of_keys:
        x[:, 8:] = torch.nan
    leaves = [x.requires_grad_() for x in tensors]
    early = operator(1e-5, True)(*leaves)[:, :8]
    assert early.isfinite().all()
    # The rows of the last block are NaN; they reach the gradients of all keys, but no other row's query.
    of_queries = [leaves[0], leaves[2]] if has_exponent else [leaves[0]]
    for gradient in torch.autograd.grad(early.sum(), of_queries):
        assert gradient[:, :8].isfinite().all()


@has_exponent
@pytest.mark.parametrize("step", [1, 50, 10**9])
def test_heads_may_be_computed_together_or_one_by_one(
    monkeypatch: pytest.MonkeyPatch, step: int, has_exponent: bool
) -> None:
    tensors = arguments(has_exponent, 5, n=7, m=7, features=3, width=2)
    expected = with_gradients(operator(1e-5, True), tensors)
    monkeypatch.setattr(tiles, "CPU_STEP", step)
    assert_close(with_gradients(operator(1e-5, True), tensors), expected)


def test_exponents_may_grow_and_shrink_without_bound(tile: int) -> None:
    """Each row takes the value of the largest exponent that it sees: its own key's, or that of key 0."""
    n = 11
    for slope in (1e3, -1e3):
        tensors = arguments(True, 2, n=n, m=n, features=3, width=2)
        tensors[0] = torch.ones(2, n, 1, dtype=torch.float64)
        tensors[1] = slope * torch.arange(n, dtype=torch.float64).view(1, n, 1).expand(2, -1, -1)
        ours = with_gradients(operator(1.0, True), tensors)
        assert_close(ours[0], tensors[4] if slope > 0 else tensors[4][:, :1].expand_as(tensors[4]))
        assert all(x.isfinite().all() for x in ours)


def test_shift_of_a_row_is_the_largest_magnitude_that_it_sees() -> None:
    lowest = torch.finfo(torch.float32).min
    magnitude = torch.tensor([[-torch.inf, 1.0, 3.0, 2.0]])
    assert seen_maximum(magnitude, 6, True).tolist() == [[lowest, 1.0, 3.0, 3.0, 3.0, 3.0]]
    assert seen_maximum(magnitude, 5, False).tolist() == [[3.0] * 5]
    assert seen_maximum(torch.empty(2, 0), 3, True).tolist() == [[0.0] * 3] * 2


def test_keys_without_weight_weigh_nothing() -> None:
    magnitude = torch.full((1, 2), -torch.inf)
    assert weigh(torch.ones(1, 2, 3), magnitude, seen_maximum(magnitude, 2, False)[:, 0]).eq(0).all()
