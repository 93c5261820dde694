import importlib.util
import random

import pytest
import sacrebleu
import torch
from sacrebleu.metrics import BLEU, CHRF

from ika_lightning.data.datasets import DATASETS
from ika_lightning.tasks.scores import CorpusScore, make_bleu

SCORES = {BLEU: sacrebleu.corpus_bleu, CHRF: sacrebleu.corpus_chrf}


@pytest.fixture
def outputs() -> tuple[list[str], list[str]]:
    """References, and the same with words changed, moved and left out."""
    references, rng = DATASETS["dates"].pairs("test", "en", "de").target, random.Random(0)
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


PERFECT = {
    "zh": ["我们在雨中唱歌。", "两只狗在雪地里奔跑。"],
    "ja": ["私たちは雨の中で歌います。", "二匹の犬が雪の中を走る。"],
    "ko": ["우리는 비 속에서 노래합니다.", "두 마리 개가 눈 속을 달린다."],
    "th": ["เราร้องเพลงกลางสายฝน", "สุนัขสองตัววิ่งในหิมะ"],
    "ar": ["نحن نغني في المطر، ونرقص.", "كلبان يركضان في الثلج."],
    "ru": ["Мы поём под дождём, и танцуем.", "Две собаки бегут по снегу."],
    "de": ["Wir singen im Regen, und tanzen.", "Zwei Hunde laufen im Schnee."],
}  # fmt: skip


class TestTokenizers:
    @pytest.mark.parametrize("language", PERFECT)
    def test_a_perfect_translation_has_100(self, language):
        texts = PERFECT[language]
        for known in (language, None):
            score = CorpusScore(make_bleu("auto", known, texts))
            score.update(texts, texts)
            assert score.compute().item() == pytest.approx(100.0)

    @pytest.mark.parametrize(
        ("language", "tokenizers"),
        [
            ("zh", {"zh"}), ("zh-CN", {"zh"}), ("ja", {"ja-mecab", "char"}), ("ko", {"ko-mecab", "char"}),
            ("th", {"char"}), ("ar", {"intl"}), ("ru", {"13a"}), ("de", {"13a"}),
        ],
    )  # fmt: skip
    def test_it_follows_the_language(self, language, tokenizers):
        texts = PERFECT[language[:2]]
        signatures = [CorpusScore(make_bleu("auto", known, texts)).signature for known in (language, None)]
        assert {
            signature.partition("tok:")[2].partition("|")[0].split("-0")[0] for signature in signatures
        } <= tokenizers

    def test_an_option_wins(self):
        assert "tok:intl" in CorpusScore(make_bleu("intl", "zh", [])).signature
        assert "case:lc" in CorpusScore(make_bleu("auto", "en", [], lowercase=True)).signature

    def test_what_is_none(self):
        with pytest.raises(ValueError, match=r"bleu_tokenizer must be 'auto' or one of none, zh, 13a, .* got '14a'"):
            make_bleu("14a", None, [])
        if importlib.util.find_spec("MeCab") is None:
            with pytest.raises(ValueError, match="bleu_tokenizer='ja-mecab': Japanese tokenization requires extra"):
                make_bleu("ja-mecab", None, [])
