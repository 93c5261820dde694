import math

import pytest
import torch

from ika_lightning.tasks import InverseSquareRoot, WarmupCosine


def rates(updates: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedule, seen = InverseSquareRoot(optimizer, warmup), []
    for _ in range(updates):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_it_rises_and_falls():
    assert rates(12, 3) == pytest.approx([0.5 * min(t / 3, (3 / t) ** 0.5) for t in range(1, 13)])
    assert rates(3, 1) == pytest.approx([0.5, 0.5 / 2**0.5, 0.5 / 3**0.5])


def test_it_goes_on_from_a_checkpoint():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    schedule = InverseSquareRoot(optimizer, 3)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    other = InverseSquareRoot(torch.optim.SGD([torch.zeros(1)], lr=0.5), 3)
    other.load_state_dict(schedule.state_dict())
    assert other.get_last_lr() == schedule.get_last_lr()
    for each in (schedule, other):
        each.optimizer.step()
        each.step()
    assert other.get_last_lr() == schedule.get_last_lr() == pytest.approx([0.5 * (3 / 7) ** 0.5])


def test_warmup_is_positive():
    with pytest.raises(ValueError, match="warmup must be at least 1 update, got 0"):
        rates(1, 0)


class TestWarmupCosine:
    @pytest.fixture
    def schedule(self):
        return WarmupCosine(
            torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)], "lr": 3.0}], lr=0.5), 0.2
        )

    def advance(self, schedule, progress) -> list[float]:
        schedule.optimizer.step()
        schedule.advance(progress)
        return schedule.get_last_lr()

    def test_it_begins_at_a_tenth(self, schedule):
        assert schedule.get_last_lr() == pytest.approx([0.05, 0.3])

    def test_it_rises_and_falls_to_nothing(self, schedule):
        for over, rise in ((0.05, 0.325), (0.1, 0.55), (0.2, 1.0), (0.7, 1.0), (1.0, 1.0), (1.5, 1.0)):
            factor = rise * (1 + math.cos(math.pi * min(over, 1.0))) / 2
            assert self.advance(schedule, over) == pytest.approx([0.5 * factor, 3.0 * factor])

    def test_without_warmup(self):
        schedule = WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), warmup=0.0)
        assert schedule.get_last_lr() == [0.5]

    def test_it_goes_on_from_a_checkpoint(self, schedule):
        before = self.advance(schedule, 0.6)
        other = WarmupCosine(
            torch.optim.SGD([{"params": [torch.zeros(1)]}, {"params": [torch.ones(1)], "lr": 3.0}], lr=0.5), 0.2
        )
        other.load_state_dict(schedule.state_dict())
        assert other.get_last_lr() == before
        assert self.advance(other, 0.7) == self.advance(schedule, 0.7)

    @pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan])
    def test_warmup_is_a_part(self, warmup):
        with pytest.raises(ValueError, match=r"warmup must be a part of the training, in \[0, 1\), got"):
            WarmupCosine(torch.optim.SGD([torch.zeros(1)], lr=0.5), warmup)
