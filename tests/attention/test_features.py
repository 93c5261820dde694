"""Feature maps of frequencies against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention.features import Bochner, Yaglom, fourier, on_modulated_circle

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


@FREQUENCIES
@pytest.mark.parametrize("stationary", [True, False])
def test_kernel_is_a_sum_of_cosines_in_which_the_key_stands_alone(stationary, lead):
    """The form that attention over edges adds up: amplitudes and offsets of the query, phases of the key."""
    frequencies = [randn(seed, *lead, 13, WIDTH) for seed in ((3,) if stationary else (3, 4))]
    features = fourier(tuple(frequencies))
    assert type(features) is (Bochner if stationary else Yaglom)
    phase_of_query, phase_of_key = (x @ features.joined.mT for x in (QUERY, KEY))
    amplitude, offset = features.amplitude_and_offset(phase_of_query)
    waves = amplitude.unsqueeze(-2) * torch.cos(offset.unsqueeze(-2) - phase_of_key.unsqueeze(-3))
    assert_close(waves.sum(-1), features(QUERY) @ features(KEY).mT)


@pytest.mark.parametrize("stationary", [True, False])
def test_map_of_chosen_sequences(stationary):
    """Where each sequence has frequencies of its own, they go with it; those that all share stay."""
    index = torch.tensor([1, 1, 0])
    for lead in ((2, HEADS), (HEADS,)):
        features = fourier(tuple(randn(seed, *lead, 13, WIDTH) for seed in ((3,) if stationary else (3, 4))))
        chosen = features.select(index)
        assert type(chosen) is type(features) and (chosen is features) is (lead == (HEADS,))
        assert_close(chosen(QUERY[index]), features(QUERY)[index], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("stationary", [True, False])
def test_frequencies_of_another_width_are_refused(stationary):
    features = fourier((torch.ones(HEADS, 13, WIDTH + 1),) * (1 if stationary else 2))
    with pytest.raises(ValueError, match=r"as wide as a head, 5, but the spectrum returned some of width 6"):
        features(QUERY)


@pytest.mark.parametrize("lead", [(2,), (2, 2)], ids=["shared", "own"])
@pytest.mark.parametrize("stationary", [True, False])
def test_gradcheck(stationary, lead):
    """Cosines and sines have a derivative of their own: once, twice, forwards and over a batch."""
    x = randn(1, 2, 2, 3, 5).requires_grad_()
    frequencies = [randn(seed, *lead, 4, 5).requires_grad_() for seed in ((3,) if stationary else (3, 4))]

    def attend(x, *frequencies):
        return fourier(frequencies)(x)

    tensors = (x, *frequencies)
    assert torch.autograd.gradcheck(attend, tensors, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_points_are_in_one_piece_and_their_gradient_is_in_the_order_of_the_phases():
    """Products of matrices come before and after, and would copy what is not as they take it."""
    phases = randn(1, 3, 2, 5, 14).transpose(0, 1).requires_grad_()
    points = on_modulated_circle(phases, 0.5)
    assert points.is_contiguous()
    (grad,) = torch.autograd.grad(points.sin().sum(), phases)
    assert grad.stride() == phases.stride() != points.stride()


def test_phases_may_be_expanded():
    phases = randn(1, 1, 14)
    found, expected = (
        torch.autograd.grad(on_modulated_circle(x.requires_grad_(), 0.5).sin().sum(), x)[0]
        for x in (phases.expand(3, 14), phases.repeat(3, 1))
    )
    assert_close(found, expected)
