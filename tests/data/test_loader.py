from itertools import chain

import numpy as np
import pytest
import torch

from ika_lightning.data.loader import LengthSampler, Loader, pad


def epoch(sampler: LengthSampler, number: int = 0) -> list[list[int]]:
    sampler.set_epoch(number)
    return [index.tolist() for index in sampler]


@pytest.fixture
def lengths():
    return np.random.default_rng(0).integers(0, 40, 331)


class TestLoader:
    def test_batches_are_what_the_indices_name(self):
        samples = torch.arange(10.0).reshape(5, 2)
        first, second, third = Loader(torch.arange(5).split(2), lambda index: samples[index])
        assert second.tolist() == [[4, 5], [6, 7]]
        assert (len(first), len(third)) == (2, 1)

    @pytest.mark.parametrize("served", [0, 1, 3])
    def test_goes_on_where_another_stopped(self, served):
        def loader():
            return Loader(torch.arange(7).split(2), torch.Tensor.tolist)

        stopped, whole = loader(), list(loader())
        batches = iter(stopped)
        for _ in range(served):
            next(batches)
        resumed = loader()
        resumed.load_state_dict(stopped.state_dict())
        assert list(resumed) == whole[served:]
        assert list(resumed) == whole  # the next epoch begins at its beginning

    def test_stopped_at_the_end_of_an_epoch(self):
        stopped = Loader(torch.arange(3).split(2), torch.Tensor.tolist)
        list(stopped)
        assert stopped.state_dict() == {"served": 0}


class TestLengthSampler:
    @pytest.mark.parametrize("size", [{"batch_size": 7}, {"max_tokens": 97}])
    def test_every_sequence_once_and_as_many_batches_in_every_epoch(self, lengths, size):
        sampler = LengthSampler(lengths, **size)
        epochs = [epoch(sampler, number) for number in range(5)]
        for batches in epochs:
            assert sorted(chain(*batches)) == list(range(331))
            assert len(batches) == len(sampler)
        assert epochs[0] != epochs[1]
        assert epochs[0] == epoch(sampler, 0)

    def test_batch_size_holds(self, lengths):
        sizes = [len(batch) for batch in epoch(LengthSampler(lengths, batch_size=7))]
        assert max(sizes) == 7 and sizes.count(7) == 331 // 7

    @pytest.mark.parametrize("world", [1, 3])
    def test_token_budget_counts_padding(self, lengths, world):
        for rank in range(world):
            for batch in epoch(LengthSampler(lengths, max_tokens=97, rank=rank, world=world)):
                assert len(batch) * lengths[batch].max() <= 97

    def test_token_budget_is_used(self, lengths):
        batches = epoch(LengthSampler(lengths, max_tokens=97))
        assert sum(lengths) / (97 * len(batches)) > 0.8

    def test_a_sequence_beyond_the_budget_is_alone(self):
        assert epoch(LengthSampler(np.array([2, 99, 2]), max_tokens=5, shuffle=False)) == [[0, 2], [1]]

    def test_the_longest_side_counts(self):
        sides = np.array([[1, 5], [2, 1], [3, 3]])
        assert epoch(LengthSampler(sides, max_tokens=6, shuffle=False)) == [[1, 2], [0]]

    def test_little_padding(self, lengths):
        lengths = np.tile(lengths, 8)
        padded = sum(len(batch) * lengths[batch].max() for batch in epoch(LengthSampler(lengths, batch_size=16)))
        assert padded < 1.1 * sum(lengths)

    @pytest.mark.parametrize("size", [{"batch_size": 4}, {"max_tokens": 50}])
    def test_processes_share_the_batches_of_one(self, lengths, size):
        one = epoch(LengthSampler(lengths, **{key: 3 * number for key, number in size.items()}), 2)
        ranks = [epoch(LengthSampler(lengths, **size, rank=rank, world=3), 2) for rank in range(3)]
        assert len({len(batches) for batches in ranks}) == 1
        joint = [sorted(chain(*shares)) for shares in zip(*ranks, strict=True)]
        if "batch_size" in size:
            assert joint == [sorted(batch) for batch in one if len(batch) >= 3]
        served = list(chain(*joint))
        assert len(served) > 331 - 3 and len(set(served)) == len(served)

    @pytest.mark.parametrize("size", [{"batch_size": 4}, {"max_tokens": 50}])
    def test_batches_of_an_update_are_the_same_whoever_has_them(self, lengths, size):
        alone = epoch(LengthSampler(lengths, **size, accumulate=6), 2)
        three = [epoch(LengthSampler(lengths, **size, rank=rank, world=3, accumulate=2), 2) for rank in range(3)]
        assert [batch for update in zip(*three, strict=True) for batch in update] == alone
        assert len(alone) % 6 == 0 and all(alone)

    def test_in_order_leaves_nothing_out(self, lengths):
        ranks = [epoch(LengthSampler(lengths, batch_size=4, shuffle=False, rank=rank, world=5)) for rank in range(5)]
        assert sorted(chain(*chain(*ranks))) == list(range(331))

    @pytest.mark.parametrize("size", [{}, {"batch_size": 2, "max_tokens": 9}])
    def test_needs_one_kind_of_size(self, lengths, size):
        with pytest.raises(ValueError, match="give either batch_size or max_tokens, got"):
            LengthSampler(lengths, **size)

    @pytest.mark.parametrize("name", ["batch_size", "max_tokens"])
    def test_needs_a_positive_size(self, lengths, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            LengthSampler(lengths, **{name: 0})


def test_pad_of_nothing():
    assert pad([]).shape == (0, 0)
    assert pad([[], [3]]).tolist() == [[0], [3]]
