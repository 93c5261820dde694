"""Which settings are tried: the same in whatever order and however often, and beyond the ends of ranges once."""

import itertools
import random
from typing import Any

import pytest

from ika_lightning.study.definition import Choice, Range, Sampler, Tuning
from ika_lightning.study.search import End, beyond, ends, propose, widened
from ika_lightning.study.tuning import Tried, best, budget, due, ends_to_widen, ranges_of_trial

LR = Range(0.001, 0.1, log=True)
RANGES = {"lr": LR, "width": Range(3, 17), "kernel": Choice(("a", "b"))}


def tuning(sampler: Sampler = "quasi-random", trials: int = 5, **options: Any) -> Tuning:
    return Tuning("val/loss", "min", trials, RANGES, sampler, repeats=(0,), **options)


def loss(settings: dict[str, Any]) -> float:
    return abs(settings["lr"] - 0.02) + abs(settings["width"] - 11) + (settings["kernel"] == "a")


def search(plan: Tuning, wider: tuple[End, ...] = (), seed: int | None = None) -> dict[int, Tried]:
    """Make all trials, by chance in another order than that in which they can be begun, and some twice."""
    order, tried = random.Random(seed), dict[int, Tried]()
    while trials := list(due(plan, RANGES, tried, set(), wider)):
        trial = trials[0] if seed is None else order.choice(trials)
        if seed is None or order.random() < 0.7:
            tried[trial.number] = Tried(loss(dict(trial.settings)), trial.settings)
    return dict(sorted(tried.items()))


@pytest.mark.parametrize("sampler", ["quasi-random", "tpe"])
@pytest.mark.parametrize("wider", [(), (End("lr", "high"), End("width", "low"))], ids=["", "wider"])
def test_no_order_and_no_interruption_changes_what_is_tried(sampler: Sampler, wider: tuple[End, ...]) -> None:
    plan = tuning(sampler)
    one = search(plan, wider)
    assert len(one) == budget(plan, wider) == (8 if wider else 5)
    assert all(search(plan, wider, seed) == one for seed in (1, 2))


def test_samplers_differ_in_whether_they_look() -> None:
    for sampler, looks in (("quasi-random", False), ("tpe", True)):
        rising, falling = (propose(RANGES, sampler, 0, "min", values) for values in (range(9), range(9, 0, -1)))
        assert (rising != falling) is looks
    plan = tuning("tpe")
    # so one of them is to be made after another, of the others all at once
    assert [trial.number for trial in due(plan, RANGES, {}, set(), ())] == [0]
    assert [trial.number for trial in due(tuning(), RANGES, {}, {1}, ())] == [0, 2, 3, 4]


def test_seeds_and_modes() -> None:
    assert propose(RANGES, "quasi-random", 0, "min", []) != propose(RANGES, "quasi-random", 1, "min", [])
    values = [float(number) for number in range(12)]
    assert propose(RANGES, "tpe", 0, "min", values) != propose(RANGES, "tpe", 0, "max", values)


def test_settings_are_in_their_ranges() -> None:
    for trial in due(tuning(trials=30), RANGES, {}, set(), ()):
        lr, width, kernel = (trial.settings[name] for name in RANGES)
        assert 0.001 <= lr <= 0.1 and kernel in ("a", "b")
        assert isinstance(width, int) and 3 <= width <= 17


def test_the_best_is_the_first_of_equals() -> None:
    tried = {number: Tried(value, {"n": number}) for number, value in ((3, 1.0), (1, 1.0), (0, 2.0), (2, 5.0))}
    assert best(tuning(), tried).settings == {"n": 1}
    assert best(Tuning("val/accuracy", "max", 3, RANGES), tried).settings == {"n": 2}


class TestEnds:
    @pytest.mark.parametrize(
        ("lr", "found"),
        [(0.001, ["low"]), (0.0015, ["low"]), (0.002, []), (0.05, []), (0.07, ["high"]), (0.1, ["high"])],
    )
    def test_the_outer_tenth_of_a_range(self, lr: float, found: list[str]) -> None:
        assert [end.side for end in ends({"lr": LR}, {"lr": lr})] == found

    def test_of_choices_those_of_numbers_have_ends(self) -> None:
        ranges = {"heads": Choice((4, 1, 2)), "kernel": Choice(("a", "b")), "bias": Choice((False, True))}
        assert ends(ranges, {"heads": 4, "kernel": "a", "bias": True}) == [End("heads", "high")]
        assert ends(ranges, {"heads": 2, "kernel": "b", "bias": False}) == []

    @pytest.mark.parametrize(
        ("inner", "low", "high"),
        [
            (Range(0.0, 2.0), (-1.0, 0.0), (2.0, 3.0)),
            (Range(0.01, 1.0, log=True), (0.001, 0.01), (1.0, 10.0)),
            (Range(2, 10), (-2, 1), (11, 14)),
            (Range(1, 2), (0, 0), (3, 3)),
            (Range(0.0, 2.0, limits=(0.0, 2.5)), None, (2.0, 2.5)),
            (Range(1, 2, limits=(1, 2)), None, None),
            (Range(1, 16, log=True, limits=(1, 24)), None, (17, 24)),
        ],
    )
    def test_what_lies_beyond(self, inner: Range, low: Any, high: Any) -> None:
        for side, wanted in (("low", low), ("high", high)):
            outer = beyond(inner, side)
            assert (outer and pytest.approx((outer.low, outer.high))) == wanted
            if outer is not None:
                assert (outer.whole, outer.log, outer.limits) == (inner.whole, inner.log, inner.limits)

    def test_choices_are_not_widened(self) -> None:
        assert beyond(Choice((1, 2)), "high") is None

    def test_widened_ranges_hold_both(self) -> None:
        wide = widened({"a": Range(0.0, 2.0), "b": Range(1, 2)}, [End("a", "low"), End("a", "high"), End("c", "low")])
        assert wide == {"a": Range(-1.0, 3.0), "b": Range(1, 2)}


class TestWidening:
    def tried(self, lr: float, value: float = 0.5) -> dict[int, Tried]:
        """Five trials, the best of which is at a learning rate."""
        middle = {"width": 11, "kernel": "a"}
        others = {number: Tried(1.0 + number, {"lr": 0.01, **middle}) for number in range(4)}
        return {**others, 4: Tried(value, {"lr": lr, **middle})}

    def test_waits_for_all_variants(self) -> None:
        ranges = {"x": RANGES, "y": RANGES}
        whole = self.tried(0.1)
        part = {number: whole[number] for number in (0, 1, 2, 3)}
        assert ends_to_widen(tuning(), ranges, {"x": whole, "y": part}) is None
        assert ends_to_widen(tuning(), ranges, {"x": whole, "y": whole}) == (End("lr", "high"),)

    def test_one_variant_widens_for_all(self) -> None:
        ranges = {"x": RANGES, "y": RANGES, "z": RANGES}
        tried = {"x": self.tried(0.01), "y": self.tried(0.1), "z": self.tried(0.001)}
        assert ends_to_widen(tuning(), ranges, tried) == (End("lr", "high"), End("lr", "low"))
        assert ends_to_widen(tuning(), ranges, {**tried, "y": tried["x"], "z": tried["x"]}) == ()

    def test_only_the_first_trials_decide(self) -> None:
        later = {**self.tried(0.01), 5: Tried(0.0, {"lr": 0.1, "width": 17, "kernel": "a"})}
        assert ends_to_widen(tuning(), {"x": RANGES}, {"x": later}) == ()

    def test_beyond_the_ends_in_turns(self) -> None:
        wider = (End("lr", "high"), End("width", "low"))
        found = [ranges_of_trial(tuning(), RANGES, number, wider) for number in range(8)]
        assert found[:5] == [RANGES] * 5
        assert [(each["lr"].high > 0.1, each["width"].low < 3) for each in found[5:]] == [  # type: ignore[union-attr]
            (True, False), (False, True), (True, False),
        ]  # fmt: skip

    def test_a_variant_without_the_option_tries_as_often(self) -> None:
        wider = (End("smoothing", "high"),)
        own = {"lr": LR}
        plan = tuning(trials=4)
        trials = list(due(plan, own, {}, set(), wider))
        assert len(trials) == budget(plan, wider) == 6
        assert all(trial.ranges == own for trial in trials)
        values = [trial.settings["lr"] for trial in trials]
        assert all(one != other for one, other in itertools.combinations(values, 2))
