"""The L^p magnitude against its formula, and at the points where a naive form breaks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention.magnitude import Magnitude, check_p, log_magnitude, norm

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


@pytest.mark.parametrize("p", ["two", "Learned", "", None])
def test_p_that_is_no_number_is_refused(p):
    with pytest.raises(ValueError, match=rf"p must be at least 1 .* or 'learned'; got {p!r}"):
        check_p(p)
    with pytest.raises(ValueError, match="p must be at least 1"):
        Magnitude(3, p)


@pytest.mark.parametrize("p", ["inf", "1.8", 3])
def test_p_may_be_a_word_for_a_number(p):
    x = randn(5, 7)
    assert_close(log_magnitude(x, p), log_magnitude(x, float(p)), rtol=0.0, atol=0.0)
    assert Magnitude(3, p).p == float(p)


@pytest.mark.parametrize("p", [1.0001, 1.8, 2.0, 3.0, 7.5, 100.0])
def test_tensor_of_exponents_gives_what_numbers_give(p):
    x = randn(2, 3, 13)
    ours = value_and_gradient(lambda x: log_magnitude(x, torch.full((3,), p, dtype=torch.float64)), x)
    assert_close(ours, value_and_gradient(lambda x: log_magnitude(x, p), x))


def test_each_vector_has_its_own_exponent():
    x, p = randn(2, 3, 7), torch.tensor([1.5, 2.0, 4.0]).double()
    expected = torch.stack([log_magnitude(x[:, i], p[i].item()) for i in range(3)], 1)
    assert_close(log_magnitude(x, p), expected)


def test_gradcheck_of_the_exponent():
    x, p = randn(2, 3, 5).requires_grad_(), torch.tensor([1.3, 2.0, 4.7]).double().requires_grad_()
    assert torch.autograd.gradcheck(log_magnitude, (x, p), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(log_magnitude, (x, p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e4, 1.0, 1e-20])
def test_gradient_of_the_exponent_is_finite_with_zeros_and_for_vectors_of_any_size(size, dtype):
    x = (size * randn(4, 5)).to(dtype)
    x[1] = 0.0
    x[2, 1:] = 0.0
    p = torch.tensor([1.7, 1.7, 1.7, 40.0], dtype=dtype).requires_grad_()
    value = log_magnitude(x, p)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    # the norm of a vector of one coordinate, or none, does not depend on p
    assert_close(gradient[1:3], torch.zeros(2, dtype=dtype), rtol=0.0, atol=1e-6 * size**2)


@pytest.mark.parametrize("p", POWERS)
def test_norm_is_that_of_torch_and_of_the_norms_of_parts(p):
    x = randn(5, 12)
    assert_close(norm(x, p), torch.linalg.vector_norm(x, p, dim=-1))
    assert_close(norm(norm(x.unflatten(-1, (3, 4)), p), p), norm(x, p))


@pytest.mark.parametrize("p", [1.0, 1.8, 2.0, math.inf])
def test_module_with_a_number_is_the_function_and_has_no_parameters(p):
    magnitude, x = Magnitude(3, p), randn(2, 3, 5, 7)
    assert list(magnitude.parameters()) == []
    assert magnitude.scale is None
    assert_close(magnitude(x), log_magnitude(x, p), rtol=0.0, atol=0.0)


def learned(raw_p: list[float], log_scale: list[float]) -> Magnitude:
    magnitude = Magnitude(len(raw_p), "learned").double()
    magnitude.raw_p.data, magnitude.log_scale.data = torch.tensor(raw_p).double(), torch.tensor(log_scale).double()
    return magnitude


def test_learned_exponents_are_their_formula():
    magnitude, x = learned([-1.0, 0.0, 0.7], [0.2, -0.3, 0.0]), randn(2, 3, 5, 7)
    for h in range(3):
        p, scale = 1 + math.exp(magnitude.raw_p[h].item()), math.exp(magnitude.log_scale[h].item())
        expected = scale * torch.linalg.vector_norm(x[:, h], p, dim=-1) ** 2 / (2 * math.sqrt(7))
        assert_close(magnitude(x)[:, h], expected)
        assert magnitude.p[h].item() == pytest.approx(p)


def test_learned_exponents_start_at_two_with_a_scale_of_one_and_return_there():
    magnitude, x = learned([1.0, -2.0, 0.3], [0.1, 0.2, 0.3]), randn(2, 3, 5, 7)
    assert not magnitude(x).isclose(log_magnitude(x)).any()
    magnitude.reset_parameters()
    for each in (magnitude, Magnitude(3, "learned").double()):
        assert each.p.tolist() == [2.0] * 3
        assert each.scale.tolist() == [1.0] * 3
        assert_close(each(x), log_magnitude(x))


def test_learned_exponents_have_the_gradients_of_the_formula():
    magnitude = learned([-1.0, 0.0, 0.7], [0.2, -0.3, 0.0])
    names = [name for name, _ in magnitude.named_parameters()]
    assert names == ["raw_p", "log_scale"]

    def attend(x, *parameters):
        return torch.func.functional_call(magnitude, dict(zip(names, parameters, strict=True)), (x,))

    x = randn(2, 3, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(attend, (x, *magnitude.parameters()))


@pytest.mark.parametrize("p", [1.0, 1.8, 2.0, math.inf, "learned"])
def test_magnitude_of_a_norm_is_that_of_its_vector(p):
    magnitude = Magnitude(3, p).double() if p != "learned" else learned([-1.0, 0.0, 0.7], [0.2, -0.3, 0.0])
    nodes = randn(11, 3, 7)
    assert_close(magnitude.of_norm(magnitude.norm(nodes), 7), magnitude(nodes.transpose(0, 1)).mT)


@pytest.mark.parametrize(("p", "shown"), [(2, "p=2.0"), ("inf", "p=inf"), ("learned", "p=learned")])
def test_representation_names_the_exponent(p, shown):
    assert repr(Magnitude(3, p)) == f"Magnitude({shown})"
