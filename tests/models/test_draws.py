"""Several draws of implicit spectra."""

import functools

import pytest
import torch
from torch.testing import assert_close

from ika_lightning.attention import IKAN, MIKAN, IKANDirect
from ika_lightning.models import Ensemble, RowTransformer, SpectralDraws


@pytest.fixture(params=[IKAN, MIKAN])
def net(request) -> RowTransformer:
    torch.manual_seed(0)
    net = RowTransformer(3, 10, depth=2, num_heads=2, attention=request.param).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def rows(count: int) -> torch.Tensor:
    return torch.linspace(-1, 1, 3 * count, dtype=torch.float64).view(count, 3).sin()


def test_the_first_is_the_network_and_the_others_differ(net) -> None:
    wanted, state = net(rows(13), rows(5)), {name: x.clone() for name, x in net.state_dict().items()}
    answers = SpectralDraws(net, 4)(rows(13), rows(5))
    assert answers.shape == (4, 5)
    assert_close(answers[0], wanted, rtol=0, atol=0)
    assert all((answers[i] != answers[j]).all() for i in range(4) for j in range(i))
    # and the network is what it was
    assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_they_repeat_whatever_else_is_drawn_or_asked(net) -> None:
    torch.manual_seed(7)
    many = SpectralDraws(net, 5)(rows(13), rows(5))
    drawn = torch.rand(())
    torch.manual_seed(7)
    few = SpectralDraws(net, 3)(rows(13), rows(5)[3:4])
    # neither do they move the generator
    assert torch.rand(()) == drawn
    assert_close(few, many[:3, 3:4])


def test_their_spread_falls_with_the_number_of_samples() -> None:
    spreads = []
    for samples in (4, 256):
        torch.manual_seed(0)
        sampled = functools.partial(IKAN, num_samples=samples, init="rbf")
        net = RowTransformer(3, 10, depth=1, num_heads=2, attention=sampled).eval()
        spreads.append(SpectralDraws(net, 7)(rows(13).float(), rows(5).float()).std(0).mean())
    # as the root of the number, 8
    assert spreads[1] < spreads[0] / 4


def test_members_of_an_ensemble_draw_each() -> None:
    sampled = functools.partial(IKAN, init="rbf")
    ensemble = Ensemble(lambda: RowTransformer(3, 10, depth=1, num_heads=2, attention=sampled), 3).double().eval()
    answers = SpectralDraws(ensemble, 2)(rows(13), rows(5))
    assert answers.shape == (2, 3, 5) and (answers[0] != answers[1]).all()


def test_nothing_to_draw() -> None:
    net = RowTransformer(3, 10, depth=1, num_heads=2, attention=IKANDirect)
    with pytest.raises(ValueError, match="draws are of implicit spectra, and the network has none; give it IKAN or"):
        SpectralDraws(net, 2)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        SpectralDraws(net, 0)
