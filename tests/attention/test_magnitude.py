"""The L^p magnitude against its formula, and at the points where a naive form breaks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention.magnitude import check_p, log_magnitude

POWERS = [1.0, 1.0001, 1.8, 2.0, 3.0, 7.5, 100.0, math.inf]


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def value_and_gradient(function, x):
    x = x.detach().requires_grad_()
    value = function(x)
    (gradient,) = torch.autograd.grad((value * torch.arange(1.0, value.numel() + 1).view_as(value)).sum(), x)
    return value.detach(), gradient


@pytest.mark.parametrize("p", POWERS)
def test_is_the_square_of_the_norm_over_twice_the_root_of_the_width(p):
    def expected(x):
        return torch.linalg.vector_norm(x, p, dim=-1) ** 2 / (2 * math.sqrt(13))

    x = randn(2, 3, 13)
    assert log_magnitude(x, p).shape == (2, 3)
    assert_close(value_and_gradient(lambda x: log_magnitude(x, p), x), value_and_gradient(expected, x))


def test_default_is_that_of_dot_product_attention():
    x = randn(5, 13)
    assert_close(log_magnitude(x), (x * x).sum(-1) / (2 * 13**0.5))


@pytest.mark.parametrize("p", [1.8, 3.0, 7.5])
def test_gradcheck(p):
    assert torch.autograd.gradcheck(lambda x: log_magnitude(x, p), randn(3, 5).requires_grad_())


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_vector_has_value_and_gradient_zero(dtype, p):
    """Padding embeddings are zero vectors, and the norm has no derivative there."""
    x = randn(3, 5).to(dtype)
    x[1] = 0
    value, gradient = value_and_gradient(lambda x: log_magnitude(x, p), x)
    assert value[1] == 0
    assert gradient[1].eq(0).all()
    alone, alone_gradient = value_and_gradient(lambda x: log_magnitude(x, p), x[:1])
    assert_close((value[:1], gradient[:1]), (alone, alone_gradient))


@pytest.mark.parametrize("p", POWERS)
def test_zero_coordinates_add_nothing(p):
    x = torch.tensor([3.0, 0.0, -4.0, 0.0]).double()
    value, gradient = value_and_gradient(lambda x: log_magnitude(x, p), x)
    without, without_gradient = value_and_gradient(lambda x: log_magnitude(x, p), x[[0, 2]])
    assert_close(value, without * math.sqrt(2 / 4))
    assert gradient[[1, 3]].eq(0).all()
    assert_close(gradient[[0, 2]], without_gradient * math.sqrt(2 / 4))


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("size", [1e4, 1.0, 1e-20])
def test_vectors_of_any_size_are_finite_in_float32(size, p):
    x = size * randn(7, 64)
    value, gradient = value_and_gradient(lambda x: log_magnitude(x, p), x.float())
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    exact, exact_gradient = value_and_gradient(lambda x: log_magnitude(x, p), x)
    # Squares of 1e-20 are denormal in float32 and have few digits left.
    rtol = 1e-4 if size >= 1 else 1e-2
    assert_close(value.double(), exact, rtol=rtol, atol=1e-37)
    assert_close(gradient.double(), exact_gradient, rtol=rtol, atol=1e-4 * size)


@pytest.mark.parametrize("p", POWERS)
def test_signs_and_order_of_coordinates_do_not_matter(p):
    x = randn(5, 7)
    assert_close(log_magnitude(-x.flip(-1), p), log_magnitude(x, p))


def test_small_p_rewards_many_active_coordinates():
    one, many = torch.eye(4)[0], torch.full((4,), 0.5)
    assert_close(log_magnitude(one, 2.0), log_magnitude(many, 2.0))
    assert log_magnitude(one, 1.2) < log_magnitude(many, 1.2)
    assert log_magnitude(one, 5.0) > log_magnitude(many, 5.0)


@pytest.mark.parametrize("p", [0.99, 0.0, -1.0, math.nan, -math.inf])
def test_p_below_one_is_refused(p):
    with pytest.raises(ValueError, match=rf"p must be at least 1 for \|x\|_p to be a norm .* got {p}"):
        check_p(p)
    with pytest.raises(ValueError, match="p must be at least 1"):
        log_magnitude(torch.ones(3), p)
