"""Where frequencies come from: laws, symmetry, coupling and divergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.testing import assert_close

from ika_lightning.attention.copula import GaussianCopula, small_encoder
from ika_lightning.attention.features import Bochner, Fourier, Yaglom
from ika_lightning.attention.implicit import ImplicitSpectrum, OddGenerator
from ika_lightning.attention.spectrum import DirectSpectrum, Spectrum, check_num_samples

HEADS, WIDTH = 3, 5


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def seed():
    """Constructors and training draw from the global generator: start it here, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def moved(module: nn.Module, size: float = 0.3) -> nn.Module:
    """Move all parameters: encoders start at zero, where neither they nor what they are told has any influence."""
    generator = torch.Generator().manual_seed(7)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return module


def implicit(*, copula: bool = False, num_samples: int = 16, conditional: bool = True, **kwargs) -> ImplicitSpectrum:
    coupling = GaussianCopula(HEADS, WIDTH, conditional=conditional) if copula else None
    return ImplicitSpectrum(HEADS, WIDTH, num_samples, conditional=conditional, copula=coupling, **kwargs)


def draw(spectrum: Spectrum, mean_key: Tensor | None = None) -> tuple[tuple[Tensor, ...], Tensor]:
    """The frequencies of the map that a spectrum returns, and its regulariser."""
    feature_map, kl = spectrum(mean_key)
    assert isinstance(feature_map, Fourier)
    return feature_map.frequencies, kl


class Identity(nn.Module):
    """A generator that lets the noise through, to look at its law."""

    def forward(self, z: Tensor) -> Tensor:
        return z


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_generator_is_odd(size):
    generate, z = moved(OddGenerator(WIDTH, scale=0.5), size), randn(1, 11, WIDTH)
    assert generate(-z).equal(-generate(z))
    assert not generate(z).isclose(0.5 * z).any()
    assert generate(torch.zeros(2, WIDTH).double()).eq(0).all()


def test_generator_is_its_formula():
    generate, z = moved(OddGenerator(WIDTH, scale=0.5)), randn(1, 2, HEADS, 11, WIDTH)
    (first, bias1), (last, bias2) = (
        (layer.weight, layer.bias) for layer in generate.network if isinstance(layer, nn.Linear)
    )
    hidden = z.abs() @ first.mT + bias1
    expected = z.sign() * 0.5 * (z.abs() + (hidden * hidden.sigmoid()) @ last.mT + bias2)
    assert_close(generate(z), expected)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_generator_starts_close_to_a_multiple_of_the_identity(scale):
    z = randn(1, 1000, WIDTH).float()
    assert (OddGenerator(WIDTH, scale)(z) - scale * z).abs().max() < 0.1 * scale


@pytest.mark.parametrize("head_dim", [13, 64])
def test_a_wide_kernel_is_a_quarter_between_independent_points(head_dim):
    (frequencies,), _ = draw(DirectSpectrum(1, head_dim, 1000, stationary=True, init="wide"))
    apart = (randn(1, 1000, head_dim) - randn(2, 1000, head_dim)).float()
    squared_kernel = (apart @ frequencies[0].mT).cos().mean(-1).square()
    assert 0.2 < squared_kernel.median() < 0.3


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
def test_one_set_of_frequencies_is_bochners_map_and_two_are_yagloms(kind):
    for stationary, expected in ((True, Bochner), (False, Yaglom)):
        feature_map, _ = kind(HEADS, WIDTH, 7, stationary=stationary)()
        assert type(feature_map) is expected


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
@pytest.mark.parametrize("smoothing", [0.25, 0.9])
def test_frequencies_beside_an_exact_part_are_the_rest_of_the_gaussian(kind, smoothing):
    """Precisions of a product of Gaussians add up to that of the whole."""
    (drawn,), _ = draw(kind(HEADS, WIDTH, 1024, stationary=True, smoothing=smoothing).eval())
    expected = math.sqrt((1 - smoothing) / (2 * math.sqrt(WIDTH)))
    assert_close(drawn.std(1), torch.full((HEADS, WIDTH), expected), rtol=0.1, atol=0.0)


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
def test_frequencies_beside_a_whole_gaussian_start_as_those_of_the_wide_kernel(kind):
    results = []
    for init in ("softmax", "wide"):
        torch.manual_seed(0)
        results.append(draw(kind(HEADS, WIDTH, 7, init=init).eval()))
    assert_close(*results, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("stationary", [True, False])
def test_direct_frequencies_are_parameters(stationary):
    spectrum = DirectSpectrum(HEADS, WIDTH, 7, stationary=stationary)
    frequencies, kl = draw(spectrum, randn(1, 2, HEADS, WIDTH))
    assert len(frequencies) == (1 if stationary else 2)
    assert kl == 0
    for drawn, parameter in zip(frequencies, spectrum.parameters(), strict=True):
        assert drawn is parameter
        assert drawn.shape == (HEADS, 7, WIDTH)
    assert not spectrum.conditional


@pytest.mark.parametrize("stationary", [True, False])
@pytest.mark.parametrize("kind", ["direct", "implicit", "copula"])
def test_rbf_frequencies_start_as_those_of_the_gaussian(kind, stationary):
    if kind == "direct":
        spectrum = DirectSpectrum(HEADS, WIDTH, 1024, stationary=stationary)
    else:
        spectrum = implicit(copula=kind == "copula", num_samples=1024, stationary=stationary).eval()
    frequencies, kl = draw(spectrum)
    assert_close(kl.detach(), torch.zeros(()), rtol=0.0, atol=1e-6)
    expected = (2 * math.sqrt(WIDTH)) ** -0.5
    for drawn in frequencies:
        assert drawn.mean(1).abs().max() < 0.03 * expected
        assert_close(drawn.std(1), torch.full((HEADS, WIDTH), expected), rtol=0.1, atol=0.0)
    if not stationary:
        # Equal pairs would have equal gradients for ever; far apart, the kernel would not be the Gaussian.
        apart = (frequencies[0] - frequencies[1]).std() / expected
        assert 0.001 < apart < 0.05


def test_paper_frequencies_start_uniform_within_the_authors_bound():
    frequencies, _ = draw(DirectSpectrum(HEADS, WIDTH, 400, init="paper"))
    bound = 2 * math.pi / math.sqrt(HEADS * 400)
    for drawn in frequencies:
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.99 * bound
        assert_close(drawn.std().item(), bound / math.sqrt(3), rtol=0.02, atol=0.0)
    assert frequencies[0].sub(frequencies[1]).std() > bound / 2


def test_paper_scale_of_the_implicit_frequencies():
    (drawn, _), _ = draw(implicit(num_samples=400, init="paper").eval())
    assert_close(drawn.std().item(), 2 * math.pi / math.sqrt(3 * HEADS * 400), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("copula", [False, True])
@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("batch", [None, 2])
def test_shapes(batch, conditional, stationary, copula):
    spectrum = moved(implicit(copula=copula, conditional=conditional, stationary=stationary, num_samples=7))
    mean_key = None if batch is None or not conditional else randn(1, batch, HEADS, WIDTH)
    frequencies, kl = draw(spectrum, mean_key)
    assert len(frequencies) == (1 if stationary else 2)
    lead = () if mean_key is None else (batch,)
    assert all(drawn.shape == (*lead, HEADS, 7, WIDTH) for drawn in frequencies)
    assert kl.shape == ()


def test_half_of_the_samples_lie_around_the_mean_and_half_around_its_negative():
    spectrum = implicit(num_samples=64, conditional=False).double()
    spectrum.generators = nn.ModuleList([Identity(), Identity()])
    with torch.no_grad():
        spectrum.mean.copy_(torch.arange(1.0, HEADS * WIDTH + 1).view(HEADS, WIDTH))
        spectrum.raw_std.fill_(-6.0)  # a spread far below the means
    for mode in (True, False):
        (z, again), _ = draw(spectrum.train(mode))
        assert z.equal(again)  # both generators are fed the same noise
        assert (z > 0).sum(1).eq(32).all()
        assert_close(z.abs(), spectrum.mean.unsqueeze(1).expand_as(z).detach(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("num_samples", [64, 256])
def test_fixed_points_are_as_even_on_either_side_of_the_mean(num_samples):
    """A half that held only the positive points of a coordinate would not be a normal law around the mean."""
    spectrum = ImplicitSpectrum(4, 16, num_samples)
    # one half is drawn around each side of the mean
    for half in spectrum.points.split(num_samples // 2, dim=1):
        assert half.mean(1).norm(dim=-1).max() < math.sqrt(16 / half.size(1))  # that of random points, on average
        positive = (half > 0).float().mean(1)
        assert_close(positive, torch.full((4, 16), 0.5), rtol=0.0, atol=0.3)


def test_density_is_symmetric():
    """An odd generator of a symmetric law: all odd moments vanish, and the kernel is real."""
    spectrum = moved(implicit(num_samples=40_000, conditional=False), 0.5)
    frequencies, _ = draw(spectrum)
    for drawn in frequencies:
        standardised = drawn / drawn.std(1, keepdim=True)
        assert standardised.mean(1).abs().max() < 5 / math.sqrt(40_000)
        assert (standardised > 0).double().mean(1).sub(0.5).abs().max() < 2.5 / math.sqrt(40_000)


@pytest.mark.parametrize("prior_std", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("conditional", [False, True])
def test_divergence_is_that_between_normal_laws(conditional, batch, prior_std):
    spectrum = moved(implicit(prior_std=prior_std, conditional=conditional), 0.5)
    mean_key = randn(1, batch, HEADS, WIDTH) if batch and conditional else None
    mean, std = spectrum.posterior(mean_key)
    expected = kl_divergence(Normal(mean, std), Normal(0.0, prior_std))
    assert expected.shape == ((2, HEADS, WIDTH) if mean_key is not None else (HEADS, WIDTH))
    _, kl = spectrum(mean_key)
    assert_close(kl, expected.mean())
    assert kl > 0.01


@pytest.mark.parametrize("prior_std", [1.0, 0.4, 3.0])
@pytest.mark.parametrize("batch", [None, 2])
def test_divergence_with_a_copula_is_that_between_joint_normal_laws(batch, prior_std):
    spectrum = moved(implicit(copula=True, prior_std=prior_std), 0.5)
    mean_key = randn(1, batch, HEADS, WIDTH) if batch else None
    mean, std = spectrum.posterior(mean_key)
    factor = spectrum.copula(mean_key)
    correlation = factor @ factor.mT
    assert not correlation[..., 1, 0].isclose(torch.zeros(()).double()).any()
    total = 0.0
    for i in range(WIDTH):  # coordinates are independent, heads are not
        spread = torch.diag_embed(std[..., i])
        posterior = MultivariateNormal(mean[..., i], spread @ correlation @ spread)
        total = total + kl_divergence(
            posterior, MultivariateNormal(torch.zeros(HEADS).double(), prior_std**2 * torch.eye(HEADS))
        )
    _, kl = spectrum(mean_key)
    assert_close(kl, total.mean() / (HEADS * WIDTH))


def test_divergence_starts_at_zero():
    for copula in (False, True):
        _, kl = implicit(copula=copula)(randn(1, 2, HEADS, WIDTH).float())
        assert_close(kl, torch.zeros(()), rtol=0.0, atol=1e-6)


def test_width_of_the_prior_matters():
    """A posterior of given parameters is closer to one prior than to another, or makes other frequencies."""
    spectra = []
    for prior_std in (0.4, 3.0):
        torch.manual_seed(0)
        spectra.append(moved(implicit(prior_std=prior_std)).eval())
    mean_key = randn(1, 2, HEADS, WIDTH)
    (narrow, narrow_kl), (wide, wide_kl) = (draw(spectrum, mean_key) for spectrum in spectra)
    assert not (narrow_kl.isclose(wide_kl) and narrow[0].isclose(wide[0]).all())


@pytest.mark.parametrize("batch", [None, 2])
def test_copula_is_the_factor_of_a_correlation_matrix(batch):
    copula = moved(GaussianCopula(HEADS, WIDTH), 0.5)
    factor = copula(None if batch is None else randn(1, batch, HEADS, WIDTH))
    assert factor.shape == ((HEADS, HEADS) if batch is None else (batch, HEADS, HEADS))
    assert factor.equal(factor.tril())
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert_close(factor.norm(dim=-1), torch.ones(factor.shape[:-1]).double())
    correlation = factor @ factor.mT
    assert_close(correlation.diagonal(dim1=-2, dim2=-1), torch.ones(factor.shape[:-1]).double())
    assert torch.linalg.eigvalsh(correlation).min() > 0


def test_copula_is_its_formula():
    copula = GaussianCopula(HEADS, WIDTH, conditional=False).double()
    copula.lower.data = torch.tensor([2.0, -1.0, 0.5]).double()
    rows = torch.tensor([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [-1.0, 0.5, 1.0]]).double()
    assert_close(copula(), rows / rows.norm(dim=1, keepdim=True))


def test_copula_starts_with_independent_heads():
    assert GaussianCopula(HEADS, WIDTH)(randn(1, 2, HEADS, WIDTH).float()).equal(torch.eye(HEADS).expand(2, -1, -1))


def test_copula_of_one_head_has_nothing_to_couple():
    spectrum = ImplicitSpectrum(1, WIDTH, 7, copula=GaussianCopula(1, WIDTH))
    frequencies, kl = draw(spectrum, torch.ones(2, 1, WIDTH))
    assert frequencies[0].shape == (2, 1, 7, WIDTH)
    assert_close(kl, torch.zeros(()))


def test_drawn_heads_have_the_correlation_of_the_copula_and_normal_marginals():
    draws = 40_000
    spectrum = implicit(copula=True, num_samples=draws, stationary=True)
    spectrum.generators = nn.ModuleList([Identity()])
    spectrum = spectrum.double().train()
    mean_key = randn(1, 2, HEADS, WIDTH)
    moved(spectrum.copula, 0.6)
    (z,), _ = draw(spectrum, mean_key)  # posterior at the prior: the noise alone
    factor = spectrum.copula(mean_key)
    error = 1 / math.sqrt(draws)
    assert z.mean(-2).abs().max() < 5 * error
    assert (z.var(-2) - 1).abs().max() < 5 * math.sqrt(2) * error
    # Uniform after the normal distribution function, so normal in more than its moments.
    uniform = torch.special.ndtr(z).sort(-2).values
    steps = torch.linspace(0, 1, draws, dtype=torch.float64).unsqueeze(-1)
    assert (uniform - steps).abs().max() < 2.5 * error
    expected = factor @ factor.mT
    for b in range(2):
        assert expected[b].tril(-1).abs().max() > 0.3
        for i in range(WIDTH):
            assert (torch.corrcoef(z[b, :, :, i]) - expected[b]).abs().max() < 5 * error
        across = torch.corrcoef(z[b].transpose(0, 1).flatten(1).mT)
        same = torch.eye(WIDTH, dtype=torch.bool).repeat(HEADS, HEADS)
        assert across[~same].abs().max() < 5 * error  # coordinates stay independent


@pytest.mark.parametrize("copula", [False, True])
def test_evaluation_is_deterministic_and_training_is_not(copula):
    spectrum, mean_key = moved(implicit(copula=copula)), randn(1, 2, HEADS, WIDTH)
    (first, _), kl = draw(spectrum.eval(), mean_key)
    (second, _), again = draw(spectrum, mean_key)
    assert first.equal(second)
    assert kl.equal(again)
    (first, _), kl = draw(spectrum.train(), mean_key)
    (second, _), again = draw(spectrum, mean_key)
    assert not first.isclose(second).any()
    assert kl.equal(again)  # closed form: no sampling


def test_evaluation_leaves_the_global_generator_alone():
    spectrum, before = implicit(copula=True).eval(), torch.get_rng_state()
    spectrum(torch.ones(2, HEADS, WIDTH))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("copula", [False, True])
def test_mean_key_moves_the_posterior_of_its_own_sample_only(copula):
    spectrum, mean_key = moved(implicit(copula=copula)).eval(), randn(1, 2, HEADS, WIDTH)
    (before, _), _ = draw(spectrum, mean_key)
    mean_key[1] += 1
    (after, _), _ = draw(spectrum, mean_key)
    assert after[0].equal(before[0])
    assert not after[1].isclose(before[1]).any()


def test_mean_key_moves_its_own_head_only_without_a_copula():
    spectrum, mean_key = moved(implicit()).eval(), randn(1, 2, HEADS, WIDTH)
    (before, _), _ = draw(spectrum, mean_key)
    mean_key[:, 1] += 1
    (after, _), _ = draw(spectrum, mean_key)
    assert after[:, [0, 2]].equal(before[:, [0, 2]])
    assert not after[:, 1].isclose(before[:, 1]).any()


def test_unconditional_spectrum_has_no_encoder():
    names = {name.split(".")[0] for name, _ in implicit(copula=True, conditional=False).named_parameters()}
    assert names == {"mean", "raw_std", "generators", "copula"}
    assert not implicit(conditional=False).conditional
    assert implicit().conditional


@pytest.mark.parametrize("copula", [False, True])
@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("move", [False, True], ids=["at the start", "later"])
def test_every_parameter_gets_a_gradient_in_every_call(move, batch, stationary, copula):
    """Distributed training stops at a parameter that a step left out; zero will do, None will not."""
    spectrum = implicit(copula=copula, stationary=stationary).double()
    if move:
        moved(spectrum)
    frequencies, kl = draw(spectrum, None if batch is None else randn(1, batch, HEADS, WIDTH))
    (sum(drawn.square().sum() for drawn in frequencies) + kl).backward()
    for name, parameter in spectrum.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if move and batch:
            assert parameter.grad.ne(0).any(), name


def test_points_are_saved():
    assert implicit().state_dict()["points"].shape == (HEADS, 16, WIDTH)


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
def test_one_sample_is_enough(kind):
    frequencies, _ = draw(kind(HEADS, WIDTH, 1))
    assert frequencies[0].shape == (HEADS, 1, WIDTH)
    assert frequencies[0].isfinite().all()


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
@pytest.mark.parametrize("num_samples", [0, -1, True, 2.0, "3"])
def test_number_of_samples_that_is_no_positive_whole_number_is_refused(kind, num_samples):
    with pytest.raises(ValueError, match=f"num_samples must be a whole number of at least 1, got {num_samples}"):
        kind(HEADS, WIDTH, num_samples)


def test_check_num_samples_accepts_what_it_should():
    check_num_samples(1)


@pytest.mark.parametrize("prior_std", [0.0, -1.0, math.inf, math.nan])
def test_width_of_the_prior_must_be_positive_and_finite(prior_std):
    with pytest.raises(ValueError, match=f"prior_std must be positive and finite, got {prior_std}"):
        implicit(prior_std=prior_std)


@pytest.mark.parametrize("kind", [DirectSpectrum, ImplicitSpectrum])
def test_unknown_init_is_refused(kind):
    with pytest.raises(ValueError, match="init must be one of 'softmax', 'rbf', 'wide', 'paper', got 'zeros'"):
        kind(HEADS, WIDTH, 7, init="zeros")


def test_small_encoder_starts_at_zero_and_can_learn():
    encoder = small_encoder(3, 2)
    out = encoder(torch.ones(7, 3))
    assert out.shape == (7, 2)
    assert out.eq(0).all()
    out.sum().backward()
    assert encoder[-1].weight.grad.ne(0).all()


def test_representation_names_the_sizes():
    assert "num_samples=16, prior_std=0.5, conditional=True" in repr(implicit(prior_std=0.5))
