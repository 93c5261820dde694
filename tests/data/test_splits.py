"""Splits: every row once, each class its share, the same for the same seed."""

import numpy as np
import pytest
from sklearn.model_selection import ShuffleSplit

from ika_lightning.data.splits import deal, draw, fold_of, hold_out, per_class, share_of


class TestByClass:
    labels = np.random.default_rng(0).choice(5, 337, p=[0.5, 0.3, 0.1, 0.09, 0.01])

    def test_each_class_gets_its_share(self):
        rows = hold_out(self.labels, np.arange(337), 67, seed=1)
        assert len(set(rows.tolist())) == 67 and rows.tolist() == sorted(rows.tolist())
        for label in range(5):
            assert abs((self.labels[rows] == label).sum() - (self.labels == label).sum() * 67 / 337) < 1

    def test_folds_part_the_rows_and_each_class(self):
        folds = [fold_of(self.labels, fold, 7, seed=1) for fold in range(7)]
        assert sorted(np.concatenate(folds).tolist()) == list(range(337))
        for label in range(5):
            counts = [(self.labels[fold] == label).sum() for fold in folds]
            assert max(counts) - min(counts) <= 1

    @pytest.mark.parametrize("folds", [2, 3, 5, 11])
    def test_folds_of_few_rows(self, folds):
        labels = np.array([0, 1, 0, 1, 2, 2, 3])
        parts = [fold_of(labels, fold, folds, seed=0) for fold in range(folds)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(6))

    def test_the_only_row_of_a_class_is_never_drawn(self):
        labels = np.array([0, 0, 0, 1])
        for seed in range(20):
            assert 3 not in hold_out(labels, np.arange(4), 3, seed)
            assert 3 not in np.concatenate([fold_of(labels, fold, 2, seed) for fold in (0, 1)])
        assert hold_out(labels, np.array([0, 3]), 1, seed=0).tolist() == []

    def test_the_draw_is_random_and_repeats(self):
        first, again, other = (hold_out(self.labels, np.arange(337), 9, seed).tolist() for seed in (0, 0, 1))
        assert first == again != other

    @pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 6, 7])
    def test_any_size(self, size):
        labels = np.array([0, 1, 0, 1, 2, 2, 3])
        for seed in range(20):
            chosen = hold_out(labels, np.arange(7), size, seed)
            assert len(chosen) == min(size, 3)
            assert set(np.delete(labels, chosen)) == {0, 1, 2, 3}

    def test_so_many_of_each(self):
        labels, rows = np.array([0, 1, 0, 1, 2, 0, -1]), np.arange(6)
        chosen = per_class(labels, rows, 2, seed=3)
        assert labels[chosen].tolist().count(0) == labels[chosen].tolist().count(1) == 2
        assert 4 in chosen and 6 not in chosen
        assert set(per_class(labels, rows, 1, seed=3, first=np.array([5, 3]))) == {5, 3, 4}


class TestDeal:
    def test_every_row_once(self):
        parts = deal(np.arange(53), 5, 7, ordered=False, seed=0)
        assert [len(parts[part]) for part in ("train", "val", "test")] == [41, 5, 7]
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(53))

    def test_groups_stay_together(self):
        units = np.arange(53) // 3
        parts = deal(units, 2, 5, ordered=False, seed=0)
        groups = [set(units[rows].tolist()) for rows in parts.values()]
        assert [len(group) for group in groups] == [11, 2, 5] and len(set.union(*groups)) == 18

    def test_nothing_held_out(self):
        assert [len(rows) for rows in deal(np.arange(7), 0, 0, ordered=False, seed=0).values()] == [7, 0, 0]
        assert draw(np.arange(3), 3, seed=0).tolist() == [0, 1, 2]

    def test_shares(self):
        assert [share_of(0.1, count) for count in (0, 3, 14, 16)] == [1, 1, 1, 2]


@pytest.mark.parametrize(("count", "size"), [(2, 1), (7, 3), (337, 67), (337, 336)])
def test_rows_are_drawn_as_scikit_learn_draws_them(count, size):
    rows = np.arange(count) * 3
    for seed in (0, 1, 1_000_003):
        _, chosen = next(ShuffleSplit(n_splits=1, test_size=size, random_state=seed).split(rows))
        assert draw(rows, size, seed).tolist() == sorted(rows[chosen].tolist())
