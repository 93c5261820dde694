"""Kernel attention in linear time, forwards and backwards, against the reference; and its state, token by token."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import linear, linear_scan, linear_state
from ika_lightning.attention.backends.linear_state import LinearState


@pytest.fixture(params=[(3, 1), (4, 20), (256, 1024)], ids=str)
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks and slabs leave ragged edges; large ones hold everything."""
    for module in (linear, linear_state):
        monkeypatch.setattr(module, "BLOCK", request.param[0])
        monkeypatch.setattr(module, "SLAB", request.param[1])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def linear_attention(*arguments: Tensor | float | bool) -> Tensor:
    out, *_ = linear._linear(*arguments)
    return out


def with_gradients(function, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("floor", [0.0, 0.3])
@pytest.mark.parametrize("features", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("n", "m"), [(7, 11), (11, 7), (13, 13)])
def test_equals_the_reference(sizes: None, n: int, m: int, features: int, floor: float, is_causal: bool) -> None:
    # Far from zero: without a floor, a similarity near 0 loses digits when it is a sum of products of both signs.
    query, key = draw(2, 3, n, features).abs(), draw(2, 3, m, features).abs()
    tensors = [query, key, draw(2, 3, m, 5), 30 * draw(2, 3, m)]

    def attend(backend: str):
        return lambda *args: kernel_attention(*args, floor=floor, is_causal=is_causal, backend=backend)

    assert_close(with_gradients(attend("linear"), tensors), with_gradients(attend("reference"), tensors))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("features", [3, 4])
def test_gradcheck(sizes: None, features: int, is_causal: bool) -> None:
    tensors = [x.requires_grad_() for x in (draw(1, 6, features), draw(1, 5, features), draw(1, 5, 2), draw(1, 5))]
    assert torch.autograd.gradcheck(lambda *args: linear_attention(*args, 0.1, is_causal), tensors)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("features", [3, 4])
def test_second_derivatives(sizes: None, features: int, is_causal: bool) -> None:
    tensors = [x.requires_grad_() for x in (draw(1, 5, features), draw(1, 4, features), draw(1, 4, 2), draw(1, 4))]
    assert torch.autograd.gradgradcheck(lambda *args: linear_attention(*args, 0.1, is_causal), tensors)


def test_causal_magnitudes_may_grow_and_shrink_without_bound(sizes: None) -> None:
    n = 23
    for slope in (1e4, -1e4):
        tensors = [draw(1, n, 4), draw(1, n, 4), draw(1, n, 3), slope * torch.arange(n).double().view(1, n)]
        ours = with_gradients(lambda *args: linear_attention(*args, 1e-5, True), tensors)
        # Each row is the value of the largest magnitude so far: its own, or that of row 0.
        assert_close(ours[0], tensors[2] if slope > 0 else tensors[2][:, :1].expand_as(tensors[2]))
        assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3])
@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize(("n", "m", "chunk"), [(23, 23, 4), (23, 11, 4), (7, 7, 16), (13, 13, 1), (8, 8, 4)])
def test_scan_of_accelerators_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, n: int, m: int, chunk: int, spread: float, floor: float
) -> None:
    monkeypatch.setattr(linear, "has_many_chunks", lambda x: True)
    monkeypatch.setattr(linear_scan, "BLOCK", chunk)
    tensors = [draw(2, 3, n, 5), draw(2, 3, m, 5), draw(2, 3, m, 4), spread * draw(2, 3, m)]
    mask = torch.arange(m) % 5 != 0
    ours, expected = (
        with_gradients(
            lambda *x, backend=backend: kernel_attention(
                *x, attn_mask=mask, is_causal=True, floor=floor, backend=backend
            ),
            tensors,
        )
        for backend in ("linear", "reference")
    )
    assert_close(ours, expected)


def test_scan_of_accelerators_has_magnitudes_that_grow_and_shrink_without_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "has_many_chunks", lambda x: True)
    monkeypatch.setattr(linear_scan, "BLOCK", 4)
    for slope in (1e4, -1e4):
        tensors = [draw(1, 23, 4), draw(1, 23, 4), draw(1, 23, 3), slope * torch.arange(23).double().view(1, 23)]
        ours = with_gradients(lambda *args: linear_attention(*args, 1e-5, True), tensors)
        assert_close(ours[0], tensors[2] if slope > 0 else tensors[2][:, :1].expand_as(tensors[2]))
        assert all(x.isfinite().all() for x in ours)


def test_scan_of_accelerators_leaves_the_state_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [draw(2, 23, 4), draw(2, 23, 4), draw(2, 23, 3), draw(2, 23)]
    expected = linear.forward(*tensors, 1e-5, True)
    monkeypatch.setattr(linear, "has_many_chunks", lambda x: True)
    monkeypatch.setattr(linear_scan, "BLOCK", 4)
    assert_close(linear.forward(*tensors, 1e-5, True), expected)


@pytest.mark.parametrize("step", [1, 200, 10**9])
def test_heads_may_be_computed_together_or_one_by_one(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    tensors = [draw(5, 7, 3), draw(5, 7, 3), draw(5, 7, 2), draw(5, 7)]
    expected = with_gradients(lambda *args: linear_attention(*args, 1e-5, True), tensors)
    monkeypatch.setattr("ika_lightning.attention.backends.tiles.CPU_STEP", step)
    assert_close(with_gradients(lambda *args: linear_attention(*args, 1e-5, True), tensors), expected)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_state_attends_token_by_token_as_a_causal_call(sizes: None, lead: tuple[int, ...], spread: float) -> None:
    n = 9
    query, key, value = draw(*lead, n, 4), draw(*lead, n, 4), draw(*lead, n, 3)
    log_magnitude = spread * draw(*lead, n)
    state, rows = LinearState.empty(key, value), []
    for t in range(n):
        state = state.update(key[..., t : t + 1, :], value[..., t : t + 1, :], log_magnitude[..., t : t + 1])
        rows.append(state.read(query[..., t : t + 1, :], floor=1e-5))
    expected = kernel_attention(query, key, value, log_magnitude, is_causal=True, backend="reference")
    assert_close(torch.cat(rows, -2), expected)
    assert [x.shape for x in state] == [x.shape for x in LinearState.empty(key, value)]


def test_state_may_take_many_keys_at_once_and_stays_as_it_was(sizes: None) -> None:
    query, key, value, log_magnitude = draw(2, 5, 4), draw(2, 11, 4), draw(2, 11, 3), draw(2, 11)
    before = LinearState.empty(key, value)
    prompt = before.update(key[:, :7], value[:, :7], log_magnitude[:, :7])
    kept = [x.clone() for x in prompt]
    both = prompt.update(key[:, 7:], value[:, 7:], log_magnitude[:, 7:])
    expected = kernel_attention(query, key, value, log_magnitude, backend="reference")
    assert_close(both.read(query, 1e-5), expected)
    assert all(x.equal(y) for x, y in zip(prompt, kept, strict=True))
    assert before.products.eq(0).all()


def test_state_of_masked_keys_reads_zeros() -> None:
    state = LinearState.empty(torch.ones(2, 4), torch.ones(2, 3))
    masked = state.update(torch.ones(2, 4), torch.ones(2, 3), torch.full((2,), -torch.inf))
    for each in (state, masked):
        assert each.read(torch.ones(5, 4), 1e-5).eq(0).all()


def test_memory_of_the_backward_does_not_grow_with_the_square_of_the_features(monkeypatch) -> None:
    """Beside inputs and results, a call saves the state, S (e + 1) numbers a head, and the sums of weights."""
    saved: list[int] = []
    tensors = [x.requires_grad_() for x in (draw(2, 300, 4), draw(2, 300, 4), draw(2, 300, 3), draw(2, 300))]

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        linear_attention(*tensors, 1e-5, False)
    inputs_and_result = sum(x.numel() for x in tensors) + 2 * 300 * 3
    assert sum(saved) == inputs_and_result + 2 * 300 + 2 * 4 * 12 + 2 * 4
