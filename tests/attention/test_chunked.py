"""The sums of kernel attention by tiles, forwards and backwards, against the reference."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import chunked, kernel_attention
from ika_lightning.attention.chunked import chunked_attention, seen_maximum, weigh


@pytest.fixture(params=[3, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small tiles leave ragged edges on both axes; large ones hold everything."""
    monkeypatch.setattr(chunked, "TILE", request.param)
    return int(request.param)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def with_gradients(function, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize(("n", "m"), [(7, 11), (11, 7), (13, 13), (1, 5), (5, 1)])
def test_equals_the_reference(tile: int, n: int, m: int, floor: float, is_causal: bool) -> None:
    tensors = [draw(2, 3, n, 4), draw(2, 3, m, 4), draw(2, 3, m, 5), 30 * draw(2, 3, m)]

    def attend(backend: str):
        return lambda *args: kernel_attention(*args, floor=floor, is_causal=is_causal, backend=backend)

    assert_close(with_gradients(attend("chunked"), tensors), with_gradients(attend("reference"), tensors))


@pytest.mark.parametrize("is_causal", [False, True])
def test_gradcheck(tile: int, is_causal: bool) -> None:
    tensors = [x.requires_grad_() for x in (draw(2, 7, 3), draw(2, 5, 3), draw(2, 5, 2), draw(2, 5))]
    assert torch.autograd.gradcheck(lambda *args: chunked_attention(*args, 0.1, is_causal), tensors)


def test_tiles_above_the_diagonal_are_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their keys could hold anything, so they hold NaN."""
    monkeypatch.setattr(chunked, "TILE", 4)
    tensors = [draw(1, 12, 3), draw(1, 12, 3), draw(1, 12, 2), draw(1, 12)]
    for x in tensors[1:]:
        x[:, 8:] = torch.nan
    leaves = [x.requires_grad_() for x in tensors]
    early = chunked_attention(*leaves, 1e-5, True)[:, :8]
    assert early.isfinite().all()
    # The rows of the last block are NaN; they reach the gradients of all keys, but no other row's query.
    assert torch.autograd.grad(early.sum(), leaves[0])[0][:, :8].isfinite().all()


@pytest.mark.parametrize("step", [1, 50, 10**9])
def test_heads_may_be_computed_together_or_one_by_one(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    tensors = [draw(5, 7, 3), draw(5, 7, 3), draw(5, 7, 2), draw(5, 7)]
    expected = with_gradients(lambda *args: chunked_attention(*args, 1e-5, True), tensors)
    monkeypatch.setattr(chunked, "CPU_STEP", step)
    assert_close(with_gradients(lambda *args: chunked_attention(*args, 1e-5, True), tensors), expected)


def test_shift_of_a_row_is_the_largest_magnitude_that_it_sees() -> None:
    lowest = torch.finfo(torch.float32).min
    magnitude = torch.tensor([[-torch.inf, 1.0, 3.0, 2.0]])
    assert seen_maximum(magnitude, 6, True).tolist() == [[lowest, 1.0, 3.0, 3.0, 3.0, 3.0]]
    assert seen_maximum(magnitude, 5, False).tolist() == [[3.0] * 5]
    assert seen_maximum(torch.empty(2, 0), 3, True).tolist() == [[0.0] * 3] * 2


def test_keys_without_weight_weigh_nothing() -> None:
    magnitude = torch.full((1, 2), -torch.inf)
    assert weigh(torch.ones(1, 2, 3), magnitude, seen_maximum(magnitude, 2, False)[:, 0]).eq(0).all()
