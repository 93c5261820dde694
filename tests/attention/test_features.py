"""Feature maps of frequencies against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention.features import Bochner, Yaglom

HEADS, WIDTH = 3, 5


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs(query: Tensor, key: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Yaglom's estimate term by term: mean cosine of u.q - u.k, u.q - w.k, w.q - u.k and w.q - w.k."""
    total = 0.0
    for m in range(first.size(-2)):
        for a in (first, second):
            for b in (first, second):
                phase_q = (query * a[..., m, :].unsqueeze(-2)).sum(-1)
                phase_k = (key * b[..., m, :].unsqueeze(-2)).sum(-1)
                total = total + torch.cos(phase_q.unsqueeze(-1) - phase_k.unsqueeze(-2))
    return total / (4 * first.size(-2))


FREQUENCIES = pytest.mark.parametrize("lead", [(HEADS,), (2, HEADS), ()], ids=str)
QUERY, KEY = randn(1, 2, HEADS, 7, WIDTH), randn(2, 2, HEADS, 11, WIDTH)


@FREQUENCIES
def test_stationary_features_multiply_to_a_mean_of_cosines(lead):
    frequencies = randn(3, *lead, 13, WIDTH)
    query, key = Bochner((frequencies,))(QUERY), Bochner((frequencies,))(KEY)
    assert query.shape == (2, HEADS, 7, 26)
    difference = QUERY.unsqueeze(-2) - KEY.unsqueeze(-3)  # (2, h, n, m, d)
    phases = torch.einsum("...nkd,...sd->...nks", difference, frequencies)
    assert_close(query @ key.mT, phases.cos().mean(-1))


@FREQUENCIES
def test_nonstationary_features_are_sums_over_the_pair(lead):
    first, second = randn(3, *lead, 13, WIDTH), randn(4, *lead, 13, WIDTH)
    ours = Yaglom((first, second))(QUERY)
    u, w = (torch.einsum("...nd,...sd->...ns", QUERY, x) for x in (first, second))
    assert_close(ours, torch.cat([u.cos() + w.cos(), u.sin() + w.sin()], -1) / math.sqrt(4 * 13))
    assert_close(ours @ Yaglom((first, second))(KEY).mT, pairs(QUERY, KEY, first, second))


def test_equal_pairs_give_the_stationary_features():
    frequencies = randn(3, HEADS, 13, WIDTH)
    assert_close(Yaglom((frequencies, frequencies))(QUERY), Bochner((frequencies,))(QUERY))


def test_nonstationary_kernel_is_no_function_of_the_difference():
    first, second = randn(3, HEADS, 13, WIDTH), randn(4, HEADS, 13, WIDTH)

    def kernel(shift):
        return Yaglom((first, second))(QUERY + shift) @ Yaglom((first, second))(KEY + shift).mT

    assert not kernel(1.0).isclose(kernel(0.0)).any()


@pytest.mark.parametrize("stationary", [True, False])
def test_squared_similarity_is_positive_semidefinite(stationary):
    """A product of positive semi-definite kernels is one: the reason why the square may stand in for the kernel."""
    points, first, second = randn(1, HEADS, 17, WIDTH), randn(3, HEADS, 3, WIDTH), randn(4, HEADS, 3, WIDTH)
    features = Bochner((first,))(points) if stationary else Yaglom((first, second))(points)
    assert torch.linalg.eigvalsh((features @ features.mT) ** 2).min() > -1e-12


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_features_are_bounded_with_finite_gradients(scale):
    x, first, second = scale * QUERY, randn(3, HEADS, 13, WIDTH), randn(4, HEADS, 13, WIDTH)
    x = x.requires_grad_()
    features = Yaglom((first, second))(x)
    assert (features.square().sum(-1) <= 1 + 1e-12).all()
    features.sum().backward()
    assert x.grad.isfinite().all()


def test_gaussian_frequencies_estimate_the_kernel_of_dot_product_attention():
    """With w ~ N(0, I / 2 sqrt d) the square of the estimate tends to exp(-|q - k|^2 / 2 sqrt d)."""
    frequencies = randn(3, 20_000, WIDTH) / (2 * math.sqrt(WIDTH)) ** 0.5
    query, key = QUERY[0, 0], KEY[0, 0]
    estimate = (Bochner((frequencies,))(query) @ Bochner((frequencies,))(key).mT) ** 2
    assert_close(estimate, torch.exp(-(torch.cdist(query, key) ** 2) / (2 * math.sqrt(WIDTH))), rtol=0.0, atol=0.03)
