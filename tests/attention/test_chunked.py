import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import chunked, kernel_attention
from ika_lightning.attention.chunked import squared_similarity_sums


@pytest.fixture(autouse=True, params=[3, 512])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Small tiles leave ragged edges on both axes; large ones hold everything."""
    monkeypatch.setattr(chunked, "TILE", request.param)
    return int(request.param)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def plain(query: Tensor, key: Tensor, weighted: Tensor) -> Tensor:
    return torch.einsum("...nr,...mr->...nm", query, key) ** 2 @ weighted


def gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize(
    "shapes",
    [
        [(7, 5), (11, 5), (11, 2)],
        [(2, 3, 7, 5), (2, 3, 11, 5), (2, 3, 11, 2)],
        [(3, 7, 5), (2, 3, 11, 5), (2, 1, 11, 2)],
        [(1, 5), (1, 5), (1, 1)],
        [(0, 5), (11, 5), (11, 2)],
        [(7, 5), (0, 5), (0, 2)],
        [(0, 7, 5), (0, 11, 5), (0, 11, 2)],
    ],
    ids=str,
)
def test_equals_the_formula(shapes: list[tuple[int, ...]]) -> None:
    inputs = [draw(*shape) for shape in shapes]
    assert_close(squared_similarity_sums(*inputs), plain(*inputs))
    for ours, expected in zip(gradients(squared_similarity_sums, inputs), gradients(plain, inputs), strict=True):
        assert_close(ours, expected)


def test_gradcheck() -> None:
    inputs = [draw(2, 7, 3).requires_grad_(), draw(2, 5, 3).requires_grad_(), draw(2, 5, 2).requires_grad_()]
    assert torch.autograd.gradcheck(squared_similarity_sums, inputs)


def test_inputs_need_not_be_contiguous() -> None:
    query, key, weighted = draw(5, 7).mT, draw(5, 11).mT, draw(2, 11).mT
    assert_close(squared_similarity_sums(query, key, weighted), plain(query, key, weighted))


@pytest.mark.parametrize("mask", ["none", "keys", "no keys", "bias"])
@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.3])
def test_backend_equals_the_reference(mask: str, floor: float) -> None:
    query, key, value, magnitude = draw(2, 3, 7, 4), draw(2, 3, 11, 4), draw(2, 3, 11, 5), 30 * draw(2, 3, 11)
    attn_mask = {
        "none": None,
        "keys": (torch.arange(11) % 3 > 0).view(1, 1, 1, 11),
        "no keys": torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 1, 11),
        "bias": draw(2, 1, 1, 11),
    }[mask]
    options = {"attn_mask": attn_mask, "floor": floor}

    def attend(backend: str):
        return lambda *inputs: kernel_attention(*inputs, backend=backend, **options)

    inputs = [query, key, value, magnitude]
    assert_close(attend("chunked")(*inputs), attend("reference")(*inputs))
    for ours, expected in zip(
        gradients(attend("chunked"), inputs), gradients(attend("reference"), inputs), strict=True
    ):
        assert_close(ours, expected)


def test_masked_nans_have_no_influence() -> None:
    query, key, value = draw(7, 4), draw(11, 4), draw(11, 5)
    mask = torch.arange(11) < 8
    key[8:], value[8:] = torch.nan, torch.inf
    inputs = [query, key, value]

    def attend(*inputs: Tensor) -> Tensor:
        return kernel_attention(*inputs, attn_mask=mask, backend="chunked")

    assert_close(attend(*inputs), kernel_attention(query, key[:8], value[:8], backend="reference"))
    assert all(gradient.isfinite().all() for gradient in gradients(attend, inputs))


@pytest.mark.parametrize(
    "options",
    [{"is_causal": True}, {"dropout_p": 0.1}, {"return_weights": True}, {"attn_mask": torch.ones(7, 11).bool()}],
    ids=str,
)
def test_what_it_cannot_serve_is_refused_by_name_and_never_chosen(options: dict) -> None:
    inputs = draw(7, 4), draw(11, 4), draw(11, 5)
    with pytest.raises(ValueError, match="backend 'chunked' serves calls in which all queries share a mask"):
        kernel_attention(*inputs, backend="chunked", **options)
    kernel_attention(*inputs, backend="auto", **options)


def test_auto_takes_it_for_long_sequences() -> None:
    long = draw(600, 4), draw(600, 4), draw(600, 5)
    assert_close(kernel_attention(*long), kernel_attention(*long, backend="chunked"), rtol=0, atol=0)
