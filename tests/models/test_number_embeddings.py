"""Features of a row as a vector, against the formula written out number by number."""

import math

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention import RBF
from ika_lightning.models import PeriodicEmbedding, RowTransformer

FEATURES, WIDTH, FREQUENCIES, HIDDEN = 3, 11, 7, 5


@pytest.fixture
def embedding() -> PeriodicEmbedding:
    torch.manual_seed(0)
    return PeriodicEmbedding(FEATURES, WIDTH, 0.5, FREQUENCIES, HIDDEN).double()


def written_out(embedding: PeriodicEmbedding, row: torch.Tensor) -> torch.Tensor:
    parts = []
    for feature, x in enumerate(row):
        waves = [wave(2 * math.pi * c * x) for wave in (torch.cos, torch.sin) for c in embedding.frequency[feature]]
        for place in range(HIDDEN):
            weights = embedding.weight[feature, :, place]
            parts.append(sum(w * wave for w, wave in zip(weights, waves, strict=True)) + embedding.bias[feature, place])
    hidden = torch.stack(parts).relu()
    return embedding.linear.weight @ row + embedding.linear.bias + embedding.mix.weight @ hidden


def test_values_and_gradients(embedding) -> None:
    with torch.no_grad():
        embedding.bias += torch.linspace(-1, 1, embedding.bias.numel()).view_as(embedding.bias)
    rows = torch.linspace(-2, 2, 5 * FEATURES, dtype=torch.float64).view(5, FEATURES).requires_grad_()
    found, wanted = embedding(rows), torch.stack([written_out(embedding, row) for row in rows])
    assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    asked = [rows, *embedding.parameters()]
    gradients = [torch.autograd.grad(each.sin().sum(), asked) for each in (found, wanted)]
    assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert all(gradient.any() for gradient in gradients[0])


def test_rows_may_come_in_any_shape(embedding) -> None:
    rows = torch.randn(2, 5, FEATURES, dtype=torch.float64)
    assert_close(embedding(rows), torch.stack([embedding(each) for each in rows]))


def test_far_away_the_linear_map_goes_on(embedding) -> None:
    step = torch.full((1, FEATURES), 1e6, dtype=torch.float64)
    reach = embedding.mix.weight.abs().sum() * (embedding.weight.abs().sum(1) + embedding.bias.abs()).max()
    far = embedding(2 * step) - embedding(step) - step @ embedding.linear.weight.mT
    assert (far.abs() <= 2 * reach).all()


def test_dropout_is_for_training_and_spares_the_linear_map(embedding) -> None:
    rows = torch.randn(5, FEATURES, dtype=torch.float64)
    embedding.dropout.p = 1.0
    assert_close(embedding(rows), embedding.linear(rows))
    assert not torch.allclose(embedding.eval()(rows), embedding.linear(rows))


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    large = PeriodicEmbedding(31, 8, scale=0.3, num_frequencies=101)
    for _ in range(2):
        assert large.frequency.std().item() == pytest.approx(0.3, rel=0.05)
        # what each is reduced to is of the size of one wave
        assert (large.weight.square().sum(1).mean()).item() == pytest.approx(1.0, rel=0.1)
        assert not large.bias.any()
        with torch.no_grad():
            for parameter in large.parameters():
                parameter.fill_(7.0)
        large.reset_parameters()


def test_a_network_that_has_it() -> None:
    net = RowTransformer(FEATURES, 8, depth=1, num_heads=2, attention=RBF, embedding="periodic", frequency_scale=0.7)
    assert isinstance(net.embed, PeriodicEmbedding) and net.embed.scale == 0.7 and net.embed.dropout.p == 0.0
    net = RowTransformer(FEATURES, 8, depth=1, num_heads=2, attention=RBF, embedding="periodic", dropout=0.3)
    assert net.embed.dropout.p == 0.3
    assert net(torch.randn(7, FEATURES), torch.randn(5, FEATURES)).shape == (5,)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_none(scale) -> None:
    with pytest.raises(ValueError, match=f"^scale must be positive and finite, got {scale}$"):
        PeriodicEmbedding(FEATURES, WIDTH, scale)


def test_an_embedding_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"^embedding must be 'linear' or 'periodic', got 'wave'$"):
        RowTransformer(FEATURES, 8, depth=1, num_heads=2, attention=RBF, embedding="wave")
