"""How parameters start: scales, laws, and points that stand for the normal law."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.features import Bochner
from ika_lightning.attention.magnitude import log_magnitude
from ika_lightning.attention.start import Linear, initial_scale, normal_points, reset_children


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def seed():
    """Points draw from the global generator: start it here, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_initial_scale():
    assert initial_scale(8, 64, 64, "rbf") == pytest.approx((2 * math.sqrt(64)) ** -0.5)
    # A uniform law of bound b has standard deviation b / sqrt 3.
    assert initial_scale(7, 64, 11, "paper") == pytest.approx(2 * math.pi / math.sqrt(7 * 11) / math.sqrt(3))
    with pytest.raises(ValueError, match="init must be one of 'softmax', 'rbf', 'wide', 'paper', got 'RBF'"):
        initial_scale(8, 64, 64, "RBF")


@pytest.mark.parametrize("init", ["wide", "softmax"])
def test_initial_scale_of_a_wide_kernel(init):
    assert initial_scale(7, 13, 11, init) == pytest.approx(math.sqrt(math.log(2) / 13))


def test_smoothing_takes_its_part_of_the_precision():
    assert initial_scale(7, 64, 11, "rbf", smoothing=0.75) == pytest.approx(0.125)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan, math.inf])
def test_smoothing_out_of_its_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing must be in \[0, 1\), .* got {smoothing};"):
        initial_scale(7, 13, 11, "rbf", smoothing=smoothing)


@pytest.mark.parametrize("init", ["softmax", "wide", "paper"])
def test_smoothing_of_another_start_is_refused(init):
    with pytest.raises(ValueError, match=f"goes with init='rbf' alone, got smoothing=0.5 with init='{init}'"):
        initial_scale(7, 13, 11, init, smoothing=0.5)


def test_linear_layer_keeps_its_law_at_every_reset():
    linear = Linear(3, 2).starting(lambda weight: torch.nn.init.constant_(weight, 7.0))
    for _ in range(2):
        assert linear.weight.eq(7).all()
        assert linear.bias.eq(0).all()
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.ones_(linear.bias)
        linear.reset_parameters()


def test_reset_of_children_goes_through_containers_that_have_no_reset():
    module = torch.nn.Sequential(torch.nn.Sequential(Linear(3, 2).starting(torch.nn.init.ones_)))
    torch.nn.init.zeros_(module[0][0].weight)
    reset_children(module)
    assert module[0][0].weight.eq(1).all()


def test_normal_points_on_meta_have_a_shape_alone():
    points = normal_points(2, 7, 3, torch.device("meta"))
    assert points.shape == (2, 7, 3)
    assert points.is_meta


@pytest.mark.parametrize("width", [3, 10_601])
def test_normal_points_have_the_moments_of_the_normal_law(width):
    samples = 512 if width == 3 else 64
    points = normal_points(2, samples, width)
    assert points.shape == (2, samples, width)
    assert points.dtype == torch.get_default_dtype()
    assert points.isfinite().all()
    assert points.mean(1).abs().max() < (0.02 if width == 3 else 5 / math.sqrt(samples))
    assert (points.var(1) - 1).abs().max() < (0.2 if width == 3 else 1.5)
    assert (points > 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_each_normal_point_has_the_normal_law():
    """The first of a block and the last, in the first block and in one whose signs depend on those before."""
    draws = 4000
    points = normal_points(draws, 8, 3).double()
    steps = torch.linspace(0, 1, draws, dtype=torch.float64).unsqueeze(-1)
    for m in (0, 2, 3, 7):
        uniform = torch.special.ndtr(points[:, m]).sort(0).values
        assert (uniform - steps).abs().max() < 2 / math.sqrt(draws)
        assert (torch.corrcoef(points[:, m].mT) - torch.eye(3)).abs().max() < 5 / math.sqrt(draws)
        length = points[:, m].square().sum(-1)
        assert length.mean() == pytest.approx(3, rel=5 / math.sqrt(draws))
        assert length.var() == pytest.approx(6, rel=0.2)


def test_normal_points_of_a_block_are_orthogonal():
    points = normal_points(4, 13, 5).double()
    for block in points.split(5, dim=1):
        gram = block @ block.mT
        assert (gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-5


def test_every_stretch_of_normal_points_has_a_mean_close_to_zero():
    """Random points have sums that grow with the root of their number."""
    sums = normal_points(50, 256, 5).cumsum(1)
    assert sums.norm(dim=-1).max() < 12
    assert sums[:, 128].norm(dim=-1).mean() < 0.3 * math.sqrt(128 * 5)


@pytest.mark.parametrize(("width", "num_samples", "ratio"), [(8, 16, 0.5), (16, 64, 0.5), (64, 64, 0.7)])
def test_normal_points_estimate_attention_better_than_independent_ones(width, num_samples, ratio):
    query, key, value = randn(1, 3, 16, 40, width).unbind()
    query, key = query / 2, key / 2
    exact = F.scaled_dot_product_attention(query, key, value)
    errors = []
    for points in (normal_points(16, num_samples, width), torch.randn(16, num_samples, width)):
        frequencies = points.double() * initial_scale(1, width, num_samples, "rbf")
        features = map(Bochner((frequencies,)), (query, key))
        out = kernel_attention(*features, value, log_magnitude(key))
        errors.append((out - exact).square().mean().sqrt())
    assert errors[0] < ratio * errors[1]


def test_normal_points_are_independent_over_heads_and_coordinates():
    points = normal_points(4, 1024, 3).transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(points.mT)
    assert (correlation - torch.eye(12)).abs().max() < 5 / math.sqrt(1024)


def test_normal_points_are_scrambled_by_the_global_seed():
    torch.manual_seed(1)
    first, second = normal_points(2, 16, 3), normal_points(2, 16, 3)
    torch.manual_seed(1)
    assert first.equal(normal_points(2, 16, 3))
    assert not first.isclose(second).all()
