import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal
from torch.testing import assert_close

from ika_lightning.tasks.uncertainty import (
    FLOOR,
    conformal_radius,
    gaussian,
    gaussian_crps,
    gaussian_nll,
    mixture,
    rows_needed,
    scores,
)

DOUBLE = {"dtype": torch.float64}


@pytest.fixture
def beliefs() -> list[torch.Tensor]:
    """Means, standard deviations from small to large, and targets from near to far."""
    torch.manual_seed(0)
    mean = torch.randn(37, **DOUBLE)
    std = torch.logspace(-2, 1, 37, **DOUBLE)
    target = mean + std * torch.linspace(-7, 7, 37, **DOUBLE)
    return [each.requires_grad_() for each in (mean, std, target)]


def crps_by_integration(mean: torch.Tensor, std: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The definition: the squared distance of two distribution functions, to the left and to the right of the step."""
    t = torch.linspace(0, 1, 40_001, **DOUBLE) * 20 * std.detach().unsqueeze(-1)

    def distribution(x):
        return 0.5 * torch.erfc((mean.unsqueeze(-1) - x) / (std.unsqueeze(-1) * math.sqrt(2)))

    left = torch.trapezoid(distribution(target.unsqueeze(-1) - t).square(), t)
    right = torch.trapezoid((1 - distribution(target.unsqueeze(-1) + t)).square(), t)
    return left + right


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (gaussian_nll, lambda mean, std, target: -Normal(mean, std).log_prob(target)),
        (gaussian_crps, crps_by_integration),
    ],
    ids=["nll", "crps"],
)
def test_values_and_gradients_are_those_of_the_definition(ours, reference, beliefs) -> None:
    values, wanted = ours(*beliefs), reference(*beliefs)
    assert_close(values, wanted, rtol=1e-6, atol=1e-9)
    weights = torch.arange(1.0, 38, **DOUBLE)
    for gradient, right in zip(
        torch.autograd.grad(values @ weights, beliefs), torch.autograd.grad(wanted @ weights, beliefs), strict=True
    ):
        assert_close(gradient, right, rtol=1e-5, atol=1e-6)
    assert torch.autograd.gradcheck(ours, beliefs)


def test_the_score_becomes_the_absolute_error(beliefs) -> None:
    mean, _, target = beliefs
    assert_close(gaussian_crps(mean, torch.full_like(mean, 1e-12), target), (mean - target).abs(), rtol=0, atol=1e-10)


class TestGaussian:
    def test_the_standard_deviation_has_a_floor(self):
        raw = torch.tensor([[7.0, -1e30], [7.0, -3.0], [7.0, 0.0], [7.0, 1e4]], **DOUBLE)
        mean, std = gaussian(raw)
        assert mean.tolist() == [7.0] * 4
        assert_close(
            std, torch.tensor([FLOOR, FLOOR + math.log1p(math.exp(-3)), FLOOR + math.log(2), FLOOR + 1e4], **DOUBLE)
        )

    def test_a_target_that_is_hit_has_a_finite_loss_and_gradient(self):
        raw = torch.tensor([[2.0, -1e4], [2.0, 0.0]], requires_grad=True)
        for target in (2.0, 1e3):
            loss = gaussian_nll(*gaussian(raw), torch.tensor(target))
            (gradient,) = torch.autograd.grad(loss.sum(), raw)
            assert loss.isfinite().all() and gradient.isfinite().all()
        assert gaussian_nll(*gaussian(raw), torch.tensor(2.0))[0].item() == pytest.approx(
            math.log(FLOOR * math.sqrt(2 * math.pi))
        )

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_left_behind(self, dtype):
        mean, std = gaussian(torch.tensor([[1.0, -100.0]], dtype=dtype))
        assert mean.dtype == std.dtype == torch.float32 and std.item() == pytest.approx(FLOOR)
        assert gaussian(torch.zeros(3, 2, **DOUBLE)).std.dtype == torch.float64


class TestMixture:
    def test_moments_are_those_of_the_distribution(self):
        torch.manual_seed(1)
        mean, std = torch.randn(5, 7, **DOUBLE), torch.rand(5, 7, **DOUBLE)
        parts = MixtureSameFamily(Categorical(torch.ones(7, 5, **DOUBLE)), Normal(mean.T, std.T))
        of_all = mixture(mean, std)
        assert_close(of_all.mean, parts.mean)
        assert_close(of_all.std, parts.stddev)

    def test_without_deviations_the_spread_is_left(self):
        mean = torch.tensor([[1.0, 3.0], [5.0, 3.0], [1.0, 3.0], [5.0, 3.0]])
        assert_close(mixture(mean, None), (torch.tensor([3.0, 3.0]), torch.tensor([2.0, 0.0])))

    @pytest.mark.parametrize("count", [1, 2])
    def test_so_few_have_no_spread(self, count):
        mean = torch.tensor([[1.0, 3.0], [5.0, 3.0]])[:count]
        found = mixture(mean, None)
        assert found.std is None
        assert_close(found.mean, mean.mean(0))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_half_precision_is_in_float32(self, dtype):
        """The mean of 1 and the next number lies between them, and 300 squared is more than float16 holds."""
        following = 1.0 + torch.finfo(dtype).eps
        found = mixture(torch.tensor(2 * [[1.0, -300.0], [following, 300.0]], dtype=dtype), None)
        spread = (following - 1.0) / 2.0
        assert_close(found, (torch.tensor([1.0 + spread, 0.0]), torch.tensor([spread, 300.0])), rtol=1e-6, atol=0.0)

    def test_of_one_it_is_that_one(self):
        mean, std = torch.randn(1, 7, **DOUBLE), torch.rand(1, 7, **DOUBLE)
        assert_close(mixture(mean, std), (mean[0], std[0]))


class TestConformal:
    @pytest.mark.parametrize(
        ("n", "level", "rank"),
        [
            (19, 0.9, 18), (18, 0.9, 18), (9, 0.9, 9), (99, 0.9, 90), (7, 0.5, 4), (8, 0.5, 5), (19, 0.95, 19),
            # of which floating-point numbers make a little more than 11
            (19, 0.55, 11), (2, 1 / 3, 1), (1, 1e-9, 1), (99, 0.07, 7),
        ],
    )  # fmt: skip
    def test_it_is_a_score_of_a_rank(self, n, level, rank):
        known = torch.randperm(n) + 1.0
        assert conformal_radius(known, level) == rank

    @pytest.mark.parametrize(("level", "needed"), [(0.9, 9), (0.95, 19), (0.99, 99), (0.5, 1), (0.1, 1), (0.999, 999)])
    def test_few_scores_tell_nothing(self, level, needed):
        assert rows_needed(level) == needed
        assert conformal_radius(torch.rand(needed - 1), level) == math.inf
        assert conformal_radius(torch.rand(needed), level) < 1

    def test_new_scores_stay_inside_as_often_as_promised(self):
        """On average over the draws of known and new scores, exactly k / (n + 1)."""
        torch.manual_seed(0)
        drawn = torch.randn(4000, 31).abs()
        radius = torch.tensor([conformal_radius(row[:-1], 0.8) for row in drawn])
        assert (drawn[:, -1] <= radius).float().mean().item() == pytest.approx(25 / 31, abs=0.02)


def test_scores() -> None:
    mean, std, target = torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 2.0])
    assert scores(mean, torch.ones(2), target).tolist() == [4.0, 1.0]
    assert scores(mean, std, target).tolist() == [2.0, 2.0]
