import random

import pytest
import sacrebleu
import torch
from sacrebleu.metrics import BLEU, CHRF

from ika_lightning.data.corpora import EmbeddedDates
from ika_lightning.tasks.scores import CorpusScore

SCORES = {BLEU: sacrebleu.corpus_bleu, CHRF: sacrebleu.corpus_chrf}


@pytest.fixture
def outputs() -> tuple[list[str], list[str]]:
    """References, and the same with words changed, moved and left out."""
    references, rng = EmbeddedDates().pairs("test", "en", "de").target, random.Random(0)
    changed = []
    for reference in references:
        words = reference.split()
        if rng.random() < 0.3:
            words[rng.randrange(len(words))] = rng.choice(["Mai", "3.", "Uhr,", "“so”", "x-y", "&amp;"])
        if rng.random() < 0.2:
            words = words[1:] + words[:1]
        changed.append(" ".join(words[: rng.randrange(len(words))] if rng.random() < 0.1 else words))
    assert "" in changed
    return changed, references


@pytest.mark.parametrize("scorer", SCORES)
def test_batches_give_what_sacrebleu_gives_for_all(scorer, outputs):
    score, (hypotheses, references) = CorpusScore(scorer()), outputs
    for start in range(0, 500, 97):
        score.update(hypotheses[start : start + 97], references[start : start + 97])
    expected = SCORES[scorer](hypotheses, [references]).score
    assert 20 < expected < 90
    assert score.compute().item() == expected
    score.reset()
    score.update(references, references)
    assert score.compute().item() == pytest.approx(100.0)


@pytest.mark.parametrize("scorer", SCORES)
@pytest.mark.parametrize("pair", [("a b c", "a b d"), ("x", "a b c"), ("", "a b c")])
def test_smoothing_is_that_of_sacrebleu(scorer, pair):
    score, (hypothesis, reference) = CorpusScore(scorer()), pair
    score.update([hypothesis], [reference])
    assert score.compute().item() == SCORES[scorer]([hypothesis], [[reference]]).score


@pytest.mark.parametrize("scorer", SCORES)
def test_processes_are_summed(scorer, outputs):
    hypotheses, references = outputs
    parts = [CorpusScore(scorer()), CorpusScore(scorer())]
    for part, rows in zip(parts, (slice(0, 200), slice(200, None)), strict=True):
        part.update(hypotheses[rows], references[rows])
    reduce = parts[0]._reductions["statistics"]
    parts[0].statistics = reduce(torch.stack([part.statistics for part in parts]))
    assert parts[0].compute().item() == SCORES[scorer](hypotheses, [references]).score


def test_nothing_yet():
    score = CorpusScore(BLEU())
    score.update([], [])
    assert not score.statistics.any()
