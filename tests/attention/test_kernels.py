"""Explicit kernels against their formulas, and what every kernel promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.attention import (
    Kernel,
    LinearKernel,
    MaternKernel,
    PeriodicKernel,
    RationalQuadraticKernel,
    RBFKernel,
)
from ika_lightning.attention.kernels import squared_distance

HEADS, WIDTH = 3, 5


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class KernelContract:
    """What every kernel promises. A subclass builds one, writes its formula plainly, and inherits the tests."""

    stationary = True

    def build(self) -> Kernel:
        raise NotImplementedError

    def formula(self, difference: Tensor, query: Tensor, key: Tensor, kernel: Kernel) -> Tensor:
        """The kernel itself from (..., h, n, m, d)."""
        raise NotImplementedError

    @pytest.fixture
    def kernel(self) -> Kernel:
        kernel = self.build().double()
        with torch.no_grad():  # no two heads alike
            for parameter in kernel.parameters():
                parameter += torch.linspace(-0.3, 0.4, HEADS).view(HEADS, 1, 1)
        return kernel

    def test_formula(self, kernel):
        query, key = randn(1, 2, HEADS, 7, WIDTH), randn(2, 2, HEADS, 11, WIDTH)
        q, k = query.unsqueeze(-2), key.unsqueeze(-3)
        expected = self.formula(q - k, q, k, kernel)
        assert expected.shape == (2, HEADS, 7, 11)
        assert_close(kernel(query, key).exp(), expected)

    def test_gram_matrix_is_symmetric_and_positive_semidefinite(self, kernel):
        points = randn(3, HEADS, 13, WIDTH)
        points[:, 1] = points[:, 0]  # a double point makes the matrix singular
        gram = kernel(points, points).exp()
        assert_close(gram, gram.mT)
        values = torch.linalg.eigvalsh(gram)
        assert (values[:, 0] > -1e-7 * values[:, -1]).all()

    def test_batch_equals_loop(self, kernel):
        query, key = randn(1, 2, 4, HEADS, 7, WIDTH), randn(2, 2, 4, HEADS, 11, WIDTH)
        loop = [kernel(q, k) for q, k in zip(query.flatten(0, 1), key.flatten(0, 1), strict=True)]
        assert_close(kernel(query, key), torch.stack(loop).unflatten(0, (2, 4)))

    def test_each_head_has_its_own_parameters(self, kernel):
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        before = kernel(query, key)
        for parameter in kernel.parameters():
            assert parameter.shape == (HEADS, 1, 1)
            with torch.no_grad():
                parameter[1] += 0.5
            after = kernel(query, key)
            assert after[[0, 2]].equal(before[[0, 2]])
            assert not after[1].isclose(before[1]).any()
            before = after

    def test_every_parameter_gets_a_gradient(self, kernel):
        kernel(randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)).sum().backward()
        for parameter in kernel.parameters():
            assert parameter.grad.ne(0).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [0.0, 1.0, 100.0])
    def test_gradient_is_finite_at_coincident_points(self, kernel, size, dtype):
        kernel = kernel.to(dtype)
        points = (size * randn(1, HEADS, 7, WIDTH)).to(dtype).requires_grad_()
        kernel(points, points.detach().clone()).sum().backward()
        assert points.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in kernel.parameters())

    def test_gradcheck(self, kernel):
        points = randn(1, HEADS, 2, WIDTH).requires_grad_(), randn(2, HEADS, 3, WIDTH).requires_grad_()
        assert torch.autograd.gradcheck(kernel, points)

    def test_no_step_can_make_a_lengthscale_negative(self, kernel):
        with torch.no_grad():
            kernel.log_relative_lengthscale -= 20.0
        assert (kernel.lengthscale > 0).all()

    def test_lengthscale_starts_as_that_of_dot_product_attention(self):
        assert_close(self.build().lengthscale, torch.full((HEADS, 1, 1), WIDTH**0.25))

    def test_state_of_the_first_version_loads(self, kernel):
        """It kept the logarithm of the lengthscale itself."""
        state = kernel.state_dict()
        log_lengthscale = torch.linspace(-0.5, 0.9, HEADS).view(HEADS, 1, 1).double()
        del state["log_relative_lengthscale"]
        kernel.load_state_dict({**state, "log_lengthscale": log_lengthscale})
        assert_close(kernel.lengthscale, log_lengthscale.exp())

    def test_stationary_kernel_is_one_at_zero_and_largest_there(self, kernel):
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        if not self.stationary:
            shift = kernel(query + 1.0, key + 1.0)
            assert not shift.isclose(kernel(query, key)).any()
            return
        at_zero = kernel(query, query).diagonal(dim1=-2, dim2=-1).exp()
        assert_close(at_zero, torch.ones_like(at_zero), rtol=0.0, atol=1e-6)
        assert (kernel(query, key) < 0).all()
        assert_close(kernel(query + 1.0, key + 1.0), kernel(query, key))


class TestRBFKernel(KernelContract):
    def build(self):
        return RBFKernel(HEADS, WIDTH)

    def formula(self, difference, query, key, kernel):
        return torch.exp(-difference.square().sum(-1) / (2 * kernel.lengthscale**2))

    def test_starts_as_the_kernel_inside_dot_product_attention(self):
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        distance = torch.cdist(query, key)
        assert_close(
            RBFKernel(HEADS, WIDTH).double()(query, key), -(distance**2) / (2 * WIDTH**0.5), rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("precision", [0.25, 1.0, 3.0])
    def test_precision_is_that_of_the_start_also_after_a_reset(self, precision):
        kernel = RBFKernel(HEADS, WIDTH, precision).double()
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        expected = -precision * torch.cdist(query, key) ** 2 / (2 * WIDTH**0.5)
        for _ in range(2):
            assert_close(kernel.precision, torch.full((HEADS, 1, 1), precision).double(), rtol=1e-6, atol=0.0)
            assert_close(kernel(query, key), expected, rtol=1e-6, atol=1e-6)
            kernel.log_relative_lengthscale.data += 0.7
            kernel.reset_parameters()

    def test_precision_of_dot_product_attention_is_exactly_one(self):
        for dtype in (torch.float32, torch.float64):
            assert RBFKernel(HEADS, WIDTH).to(dtype).precision.eq(1).all()

    @pytest.mark.parametrize("precision", [0.0, -1.0, math.inf, math.nan])
    def test_precision_that_is_not_positive_is_refused(self, precision):
        with pytest.raises(ValueError, match=rf"precision, .*, must be positive, got {precision}"):
            RBFKernel(HEADS, WIDTH, precision)


class TestMaternKernel12(KernelContract):
    def build(self):
        return MaternKernel(HEADS, WIDTH, nu=0.5)

    def formula(self, difference, query, key, kernel):
        return torch.exp(-difference.norm(dim=-1) / kernel.lengthscale)


class TestMaternKernel32(KernelContract):
    def build(self):
        return MaternKernel(HEADS, WIDTH, nu=1.5)

    def formula(self, difference, query, key, kernel):
        r = math.sqrt(3) * difference.norm(dim=-1) / kernel.lengthscale
        return (1 + r) * torch.exp(-r)


class TestMaternKernel52(KernelContract):
    def build(self):
        return MaternKernel(HEADS, WIDTH, nu=2.5)

    def formula(self, difference, query, key, kernel):
        distance = difference.norm(dim=-1)
        r = math.sqrt(5) * distance / kernel.lengthscale
        return (1 + r + 5 * distance**2 / (3 * kernel.lengthscale**2)) * torch.exp(-r)


class TestRationalQuadraticKernel(KernelContract):
    def build(self):
        return RationalQuadraticKernel(HEADS, WIDTH)

    def formula(self, difference, query, key, kernel):
        alpha = kernel.log_alpha.exp()
        return (1 + difference.square().sum(-1) / (2 * alpha * kernel.lengthscale**2)) ** -alpha

    def test_large_alpha_gives_the_gaussian(self, kernel):
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        gaussian = RBFKernel(HEADS, WIDTH).double()
        gaussian.log_relative_lengthscale.data = kernel.log_relative_lengthscale.data
        kernel.log_alpha.data.fill_(18.0)
        assert_close(kernel(query, key), gaussian(query, key), rtol=1e-5, atol=1e-5)


class TestPeriodicKernel(KernelContract):
    def build(self):
        return PeriodicKernel(HEADS, WIDTH)

    def formula(self, difference, query, key, kernel):
        sine = torch.sin(math.pi * difference / kernel.period.unsqueeze(-1))
        return torch.exp(-2 * sine.square().sum(-1) / kernel.lengthscale**2)

    def test_repeats_after_a_period(self, kernel):
        query, key = randn(1, HEADS, 7, WIDTH), randn(2, HEADS, 11, WIDTH)
        assert_close(kernel(query + kernel.period, key - 2 * kernel.period), kernel(query, key))

    def test_period_starts_at_a_full_turn(self):
        assert_close(self.build().period, torch.full((HEADS, 1, 1), 2 * math.pi))


class TestLinearKernel(KernelContract):
    stationary = False

    def build(self):
        return LinearKernel(HEADS, WIDTH)

    def formula(self, difference, query, key, kernel):
        return (kernel.log_offset.exp() + (query * key).sum(-1) / kernel.lengthscale**2) ** 2 + 1e-5

    def test_offset_starts_at_one(self):
        assert_close(self.build().offset, torch.ones(HEADS, 1, 1))


def test_every_kernel_is_under_the_contract():
    built = {type(contract().build()) for contract in KernelContract.__subclasses__()}
    # tests have kernels of their own
    assert built == {kernel for kernel in Kernel.__subclasses__() if kernel.__module__.startswith("ika_lightning.")}


@pytest.mark.parametrize("nu", [1.0, 2.0, 0.0, math.inf])
def test_matern_order_without_a_closed_form_is_refused(nu):
    with pytest.raises(ValueError, match=rf"nu must be 0\.5, 1\.5 or 2\.5, .* got {nu}"):
        MaternKernel(HEADS, WIDTH, nu=nu)


def test_base_kernel_has_no_formula():
    with pytest.raises(NotImplementedError):
        Kernel(HEADS, WIDTH)(torch.ones(HEADS, 2, WIDTH), torch.ones(HEADS, 2, WIDTH))


def test_squared_distance_is_that_of_cdist_and_never_negative():
    query, key = randn(1, 2, 7, WIDTH), randn(2, 2, 11, WIDTH)
    assert_close(squared_distance(query, key), torch.cdist(query, key) ** 2)
    far = (1e3 * query).float()
    assert (squared_distance(far, far) >= 0).all()
