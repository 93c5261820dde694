import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ika_lightning.models import EncoderDecoder
from ika_lightning.models.decoding import Hypothesis, Search
from tests.models.test_encoder_decoder import LAYERS, SOURCE, TARGET, build, sentences

START, END, NEVER = 2, 3, (0, 1, 2)
every_layer = pytest.mark.parametrize("name", LAYERS)


def search(**options) -> Search:
    return Search(START, END, NEVER, **{"max_ratio": 1.0, "max_extra": 3, **options})


@pytest.fixture
def source() -> Tensor:
    return sentences([7, 3, 5, 1, 4], SOURCE, seed=1)


def score(net: EncoderDecoder, source: Tensor, tokens: list[int], length_penalty: float) -> float:
    """What a translation of one source is worth, by a single forward."""
    written = torch.tensor([[START, *tokens, END]])
    log_p = net(source, written[:, :-1]).log_softmax(-1)
    total = log_p.gather(2, written[:, 1:].unsqueeze(-1)).sum().item()
    return total / ((5 + len(tokens) + 1) / 6) ** length_penalty


def greedy(net: EncoderDecoder, source: Tensor, limit: int) -> list[int]:
    """The most probable token at each step, with every prefix computed anew."""
    tokens: list[int] = []
    while len(tokens) < limit:
        scores = net(source, torch.tensor([[START, *tokens]]))[0, -1]
        scores[list(NEVER)] = -math.inf
        if (best := scores.argmax().item()) == END:
            break
        tokens.append(best)
    return tokens


@every_layer
@torch.no_grad()
def test_beam_of_one_is_greedy(name, source):
    net = build(name)
    found = search(beam=1, max_extra=9)(net, source)
    for row, (hypothesis,) in zip(source, found, strict=True):
        alone = row[row != 0].unsqueeze(0)
        assert hypothesis.tokens == greedy(net, alone, alone.numel() + 9)


@every_layer
@torch.no_grad()
def test_scores_are_those_of_the_forward(name, source):
    net = build(name)
    for row, hypotheses in zip(source, search(beam=4, length_penalty=0.7)(net, source, n_best=4), strict=True):
        assert len(hypotheses) == 4
        for tokens, value in hypotheses:
            assert value == pytest.approx(score(net, row[row != 0].unsqueeze(0), tokens, 0.7), rel=1e-9)
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert len({tuple(h.tokens) for h in hypotheses}) == 4


@every_layer
@torch.no_grad()
@pytest.mark.parametrize("beam", [1, 3])
def test_a_translation_does_not_depend_on_its_batch(name, beam, source):
    net = build(name)
    together = search(beam=beam)(net, source, n_best=beam)
    for row, expected in zip(source, together, strict=True):
        (alone,) = search(beam=beam)(net, row[row != 0].unsqueeze(0), n_best=beam)
        assert [h.tokens for h in alone] == [h.tokens for h in expected]
        assert_close([h.score for h in alone], [h.score for h in expected])


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all(length_penalty):
    """Among all translations of at most two tokens."""
    net, one = build("IKANDirect"), torch.tensor([[5, 6]])
    words = [token for token in range(TARGET) if token not in (*NEVER, END)]
    every = [list(tokens) for n in range(3) for tokens in itertools.product(words, repeat=n)]
    scores = {tuple(tokens): score(net, one, tokens, length_penalty) for tokens in every}
    wide = search(beam=len(every), max_ratio=1.0, max_extra=0, length_penalty=length_penalty)
    (found,) = wide(net, one, n_best=7)
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:7]
    assert [tuple(h.tokens) for h in found] == best


@torch.no_grad()
def test_limits_are_those_of_each_sentence(source):
    net = build("DotProduct")
    net.norm.weight.zero_()
    net.norm.bias.zero_()
    net.target_embedding.weight[END] = 0.0  # all tokens are as probable; ties go to lower numbers, and 3 ends
    net.norm.bias[0] = 1.0
    net.target_embedding.weight[:, 0] = torch.arange(TARGET) / TARGET  # and now the last one is the most probable
    found = search(beam=2, max_ratio=1.5, max_extra=2)(net, source)
    assert [len(h.tokens) for (h,) in found] == [int(1.5 * n) + 2 for n in (7, 3, 5, 1, 4)]
    assert all(set(h.tokens) == {TARGET - 1} for (h,) in found)


@torch.no_grad()
def test_tokens_that_never_come(source):
    net = build("DotProduct")
    found = Search(START, END, never=(0, 1, 2, 7, 11), beam=5)(net, source, n_best=5)
    written = {token for hypotheses in found for h in hypotheses for token in h.tokens}
    assert written and not written & {0, 1, 2, 3, 7, 11}


@torch.no_grad()
def test_beam_larger_than_the_vocabulary(source):
    found = search(beam=2 * TARGET)(build("DotProduct"), source, n_best=2 * TARGET)
    assert all(len({tuple(h.tokens) for h in hypotheses}) == len(hypotheses) > TARGET for hypotheses in found)


def test_nothing_to_translate():
    assert search()(build("DotProduct"), torch.zeros(0, 0, dtype=torch.long)) == []


@torch.no_grad()
def test_no_prefix_and_no_source_is_computed_twice(source, monkeypatch):
    net = build("IKAN")
    seen: list[int] = []
    net.target_embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].size(1)))
    encoded: list[int] = []
    net.encoder.register_forward_hook(lambda _, inputs, __: encoded.append(inputs[0].size(0)))
    encoded_keys: list[int] = []
    net.layers[0].cross_attention.k_proj.register_forward_hook(lambda *_: encoded_keys.append(1))
    search(beam=3)(net, source)
    assert set(seen) == {1} and len(seen) > 3
    assert encoded == [len(source)]
    assert encoded_keys == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, got 0"),
        ({"length_penalty": -1.0}, "length_penalty must be at least 0 and finite, got -1.0"),
        ({"max_ratio": math.nan}, "max_ratio must be at least 0 and finite, got nan"),
        ({"max_extra": -1}, "max_extra must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        search(**options)


def test_n_best_beyond_the_beam(source):
    with pytest.raises(ValueError, match="n_best must be from 1 to beam=2, got 3"):
        search(beam=2)(build("DotProduct"), source, n_best=3)


def test_hypothesis_is_a_pair():
    tokens, value = Hypothesis([5, 6], -0.5)
    assert (tokens, value) == ([5, 6], -0.5)
