import pytest
import torch

from ika_lightning.tasks import InverseSquareRoot


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
