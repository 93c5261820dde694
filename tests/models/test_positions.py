import torch
from torch.testing import assert_close

from ika_lightning.models.positions import sinusoids


def test_sinusoids() -> None:
    waves = sinusoids(0, 50, torch.empty(1, 16))
    assert_close(waves[:, 0], torch.arange(50.0).sin())
    assert_close(waves[:, 15], (torch.arange(50.0) / 10_000 ** (14 / 16)).cos())
    assert_close(sinusoids(47, 3, torch.empty(1, 16)), waves[47:], rtol=0, atol=0)
    assert sinusoids(0, 3, torch.empty(1, 7)).shape == (3, 7)
