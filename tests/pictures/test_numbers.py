"""The numbers behind each picture, exactly."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, KernelGATConv, kernel_attention
from ika_lightning.attention.core import Core
from ika_lightning.attention.features import Bochner, Yaglom, fourier
from ika_lightning.attention.magnitude import log_magnitude
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.operation import FLOOR
from ika_lightning.pictures import Recorder, Recording
from ika_lightning.pictures.results import observed_coverage, principal_components
from ika_lightning.pictures.similarity import is_stationary, kernel_along, kernel_over, main_direction
from ika_lightning.pictures.spectrum import Frequencies, correlation, density, frequencies, start_std
from ika_lightning.pictures.weights import attention_weights, entropy, log_magnitudes, neighbourhoods

HEADS, WIDTH = 3, 5


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def record(layer, length=7, **masks) -> Recording:
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    layer.double().eval()
    with torch.no_grad(), Recorder(layer) as recorder:
        layer(*[torch.randn(4, length, HEADS * WIDTH).double()] * 3, need_weights=False, **masks)
    return recorder.recordings[""]


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_the_drawn_kernel_is_the_layers_own(kind, stationary) -> None:
    layer = kind(HEADS * WIDTH, HEADS, stationary=stationary, init="rbf", batch_first=True)
    recording = record(layer)
    at = torch.linspace(-2, 2, 9).double()
    # what the layer's operation makes of the same points: unnormalised weights, by way of an unnormalised sum
    drawn = [w[0] if w.dim() == 4 else w for w in recording.frequencies]
    points = at[:, None] * main_direction(recording)[:, None]
    phi = (Bochner if stationary else Yaglom)(tuple(drawn))(points)
    _, weights = kernel_attention(phi, phi, points, return_weights=True)
    surface = kernel_over(recording, at)
    assert_close(surface / surface.sum(-1, keepdim=True), weights, rtol=1e-9, atol=1e-12)
    assert_close(surface, (phi @ phi.mT).square() + FLOOR)
    assert is_stationary(recording) is stationary
    if stationary:
        assert_close(surface[:, 4], kernel_along(recording, at))
        assert_close(surface[:, 0, 1], surface[:, 4, 5])


def test_dot_product_attention_has_the_gaussian_and_a_learned_lengthscale_another() -> None:
    at = torch.linspace(0, 3, 5).double()
    recording = record(DotProduct(HEADS * WIDTH, HEADS, batch_first=True))
    expected = (-at.square() / (2 * math.sqrt(WIDTH))).exp().expand(HEADS, -1)
    assert_close(kernel_along(recording, at), expected)
    assert not recording.learned
    layer = RBF(HEADS * WIDTH, HEADS, batch_first=True)
    recording = record(layer)
    lengthscale = layer.core.kernel.lengthscale.detach().squeeze(-1)
    assert recording.learned and is_stationary(recording)
    assert_close(kernel_along(recording, at), (-at.square() / (2 * lengthscale.square())).exp())


@pytest.mark.parametrize("stationary", [False, True])
@pytest.mark.parametrize("kind", [IKANDirect, IKAN, MIKAN])
def test_the_drawn_kernel_and_density_are_those_of_the_whole_kernel(kind, stationary) -> None:
    layer = kind(HEADS * WIDTH, HEADS, stationary=stationary, num_samples=6, batch_first=True)
    recording = record(layer)
    core, at = layer.core, torch.linspace(-2, 2, 9).double()
    precision, share = core.kernel.precision.detach(), core.share.detach()[:, None, None]
    assert precision.std() > 0.01 and share.std() > 0.01
    points = at[:, None] * main_direction(recording)[:, None]
    phi = fourier(tuple(w[0] if w.dim() == 4 else w for w in recording.frequencies))(points)
    exact = (-precision * torch.cdist(points, points).square() / (2 * math.sqrt(WIDTH))).exp()
    expected = exact * ((1 - share + share * phi @ phi.mT).square() + FLOOR)
    assert_close(kernel_over(recording, at), expected, rtol=1e-6, atol=1e-9)
    drawn = frequencies(recording)
    assert_close(drawn.share, share.flatten())
    assert_close(drawn.spread, (precision.flatten() / (2 * math.sqrt(WIDTH))).sqrt())
    grid = torch.linspace(-9, 9, 901).double()
    of_zero = stats.norm.pdf(grid.numpy()[None], 0.0, drawn.spread[:, None].numpy())
    bandwidth = (
        0.9
        * torch.minimum(
            drawn.samples.std(1, correction=0), torch.from_numpy(stats.iqr(drawn.samples.numpy(), axis=1)) / 1.34
        )
        * drawn.samples.size(1) ** -0.2
    )
    width = (bandwidth.square() + drawn.spread.square()).sqrt()
    of_samples = stats.norm.pdf(
        grid.numpy()[None, :, None], drawn.samples[:, None].numpy(), width[:, None, None].numpy()
    ).mean(-1)
    share = share.flatten()[:, None].numpy()
    expected = torch.from_numpy(share * of_samples + (1 - share) * of_zero)
    assert_close(density(drawn, grid), expected, atol=1e-9, rtol=1e-6)


def test_the_main_direction_is_that_of_the_largest_frequencies() -> None:
    axis = torch.zeros(WIDTH).double()
    axis[2] = 1.0
    w = 0.01 * torch.randn(1, 6, WIDTH).double() + torch.randn(1, 6, 1).double() * axis
    recording = Recording(name="", core=Core(1, WIDTH), feature_map=Bochner((w,)))
    assert abs(float(main_direction(recording)[0] @ axis)) > 0.99


def test_the_drawn_correlation_is_the_copulas() -> None:
    layer = MIKAN(HEADS * WIDTH, HEADS, batch_first=True)
    recording = record(layer)
    drawn = correlation(recording)
    mean = recording.key[0].mean(1)
    factor = layer.core.spectrum.copula(mean)
    assert_close(drawn, (factor @ factor.mT).detach())
    assert_close(drawn.diagonal(), torch.ones(HEADS).double())
    assert drawn.tril(-1).abs().max() > 0.05
    assert correlation(record(IKAN(HEADS * WIDTH, HEADS, batch_first=True))) is None


def test_the_drawn_frequencies_are_the_layers_own() -> None:
    layer = IKAN(HEADS * WIDTH, HEADS, batch_first=True, num_samples=6)
    recording = record(layer)
    expected, _ = layer.core.spectrum(recording.key.mean(-2))
    expected = torch.cat([w[0].flatten(1) for w in expected.frequencies], 1).detach()
    assert_close(frequencies(recording).samples, expected)
    assert frequencies(recording).samples.shape == (HEADS, 2 * 6 * WIDTH)
    direct = IKANDirect(HEADS * WIDTH, HEADS, batch_first=True)
    recording = record(direct)
    expected = torch.cat([w.flatten(1) for w in direct.core.spectrum.frequencies], 1)
    assert frequencies(recording).samples.equal(expected)
    assert start_std(recording) == pytest.approx((2 * math.sqrt(WIDTH)) ** -0.5)


def test_density_is_a_kernel_density_estimate() -> None:
    samples, at = torch.randn(2, 50).double(), torch.linspace(-3, 3, 31).double()
    alone = Frequencies(samples, torch.ones(2).double(), torch.zeros(2).double())
    for row, drawn in zip(samples, density(alone, at), strict=True):
        spread = min(float(row.std(correction=0)), float(stats.iqr(row.numpy())) / 1.34)
        width = 0.9 * spread * 50**-0.2
        expected = stats.norm.pdf(at.numpy()[:, None], row.numpy(), width).mean(1)
        assert_close(drawn, torch.from_numpy(expected))


def test_density_of_equal_samples_is_a_peak_and_finite() -> None:
    drawn = density(Frequencies(torch.zeros(1, 9), torch.ones(1), torch.zeros(1)), torch.linspace(-1, 1, 21))
    assert drawn.isfinite().all() and drawn.argmax() == 10


def test_entropy_and_effective_number_of_keys() -> None:
    recording = record(DotProduct(HEADS * WIDTH, HEADS, batch_first=True), is_causal=True)
    weights = attention_weights(recording)
    found = entropy(recording)
    expected = torch.distributions.Categorical(weights.clamp_min(1e-300)).entropy().transpose(0, 1).flatten(1)
    assert_close(found, expected)
    # the first token sees itself alone: one key
    assert_close(found.view(HEADS, 4, 7)[..., 0], torch.zeros(HEADS, 4).double())
    assert (found.exp() <= 7 + 1e-9).all()


def test_padding_counts_nowhere() -> None:
    mask = torch.zeros(4, 7, dtype=torch.bool)
    mask[:, 5:] = True
    mask[3, 2:] = True
    recording = record(IKAN(HEADS * WIDTH, HEADS, batch_first=True), key_padding_mask=mask)
    real = int((~mask).sum())
    assert entropy(recording).shape == (HEADS, real)
    magnitudes = log_magnitudes(recording)
    expected = log_magnitude(recording.key.transpose(1, 2)[~mask], recording.core.p).mT
    assert_close(magnitudes.sort().values, expected.sort().values)
    assert magnitudes.shape == (HEADS, real)


def test_one_mask_may_serve_all_sequences() -> None:
    recording = record(IKAN(HEADS * WIDTH, HEADS, batch_first=True))
    shared = torch.arange(7).view(1, 1, 1, 7) < 5
    one = replace(recording, mask=Mask(keys=shared))
    each = replace(recording, mask=Mask(keys=shared.expand(4, 1, 1, 7)))
    assert log_magnitudes(one).shape == (HEADS, 4 * 5)
    assert torch.equal(log_magnitudes(one), log_magnitudes(each))
    assert torch.equal(entropy(one), entropy(each))


def test_one_token_has_one_key() -> None:
    recording = record(MIKAN(HEADS * WIDTH, HEADS, batch_first=True), length=1)
    assert_close(entropy(recording), torch.zeros(HEADS, 4).double())
    assert_close(attention_weights(recording), torch.ones(4, HEADS, 1, 1).double())


def test_neighbourhoods_and_magnitudes_of_a_graph() -> None:
    layer = KernelGATConv(4, 5, heads=2, p=1.5, init="rbf").double().eval()
    edge_index = torch.tensor([[1, 2, 3, 0, 2, 3], [0, 0, 0, 1, 1, 3]])
    with torch.no_grad(), Recorder(layer) as recorder:
        layer(torch.randn(4, 4).double(), edge_index)
    recording = recorder.recordings[""]
    (first, neighbours, weights), (second, *_) = neighbourhoods(recording)
    assert (first, second) == (0, 1) and sorted(neighbours.tolist()) == [0, 1, 2, 3]
    assert_close(weights.sum(0), torch.ones(2).double())
    assert (weights.mean(1).diff() <= 0).all()
    assert neighbourhoods(recording, most=3)[0][0] == 1
    spread = entropy(recording)
    assert spread.shape == (2, 4)
    assert_close(spread[:, 0], -(weights * weights.log()).sum(0))
    # weights are similarity x magnitude: what is left when magnitude is divided out is bounded by the kernel
    own = recording.weights.mT * (-log_magnitudes(recording)).exp()
    for node in range(4):
        of_node = own[:, recording.node == node]
        assert (of_node.amax(1) / of_node.amin(1) <= (1 + FLOOR) / FLOOR).all()


def test_principal_components_are_scikit_learns() -> None:
    x = torch.randn(30, 6).double() @ torch.randn(6, 6).double()
    components, share = principal_components(x)
    theirs = PCA(2).fit(x.numpy())
    assert_close(components.abs(), torch.from_numpy(theirs.transform(x.numpy())).abs())
    assert_close(share, torch.from_numpy(theirs.explained_variance_ratio_))
    assert principal_components(-x)[0].abs().allclose(components.abs())


@pytest.mark.parametrize("shape", [(1, 3), (5, 1), (2, 2)])
def test_components_of_few_points_or_coordinates(shape) -> None:
    components, share = principal_components(torch.ones(shape))
    assert components.shape == (shape[0], 2) and components.isfinite().all() and share.tolist() == [0, 0]


def test_coverage_is_that_of_central_intervals() -> None:
    errors, levels = torch.randn(37, dtype=torch.float64), torch.linspace(0, 0.99, 11, dtype=torch.float64)
    ends = [stats.norm.interval(level) for level in levels.tolist()]
    wanted = [((low <= errors) & (errors <= high)).double().mean().item() for low, high in ends]
    assert_close(observed_coverage(errors, levels), torch.tensor(wanted, dtype=torch.float64))
    # a deviation of zero, and one of a target that is hit besides
    assert observed_coverage(torch.tensor([math.inf, math.nan]), torch.tensor([0.5])).tolist() == [0.0]
