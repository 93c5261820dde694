"""BLEU and chrF as sacreBLEU computes them, over many batches and processes."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor
from torchmetrics import Metric

from ika_lightning.internals import corpus_statistics, score_of_statistics
from ika_lightning.lazy import sacrebleu

# How sacreBLEU's tokenizers are called that cut up what has no blanks between words, by language.
_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab", **dict.fromkeys(("th", "lo", "km", "my", "bo"), "char")}

# The default, 13a, knows the punctuation of these scripts; that of others, such as the Arabic comma, intl knows.
_EUROPEAN = ("LATIN", "GREEK", "CYRILLIC")

# The language that a script tells, by the first word of the names of its letters.
_SCRIPTS = {"CJK": "zh", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko", "THAI": "th", "LAO": "lo", "KHMER": "km",
            "MYANMAR": "my", "TIBETAN": "bo"}  # fmt: skip


def make_bleu(
    tokenizer: str, language: str | None, references: Iterable[str], *, lowercase: bool = False
) -> sacrebleu.BLEU:
    """BLEU with the tokenizer that suits a language.

    Args:
        tokenizer: One of sacreBLEU's, such as ``13a``, ``intl``, ``zh``, ``ja-mecab``, ``ko-mecab`` or ``char``;
            ``"auto"`` chooses by the language.
        language: The code of the language, such as ``zh``; None tells it by the script of the references.
        references: Some sentences of the language, of which it takes a thousand at most.
        lowercase: Fold case.

    Raises:
        ValueError: If there is no such tokenizer, or it needs a package that is not installed.

    Example:
        >>> bleu = make_bleu("auto", None, ["我们在雨中唱歌。"])
        >>> CorpusScore(bleu).signature.partition("|smooth")[0]
        'nrefs:1|case:mixed|eff:no|tok:zh'
    """
    chosen = _choose_tokenizer(language, references) if tokenizer == "auto" else tokenizer
    if chosen not in sacrebleu.BLEU.TOKENIZERS:
        raise ValueError(
            f"bleu_tokenizer must be 'auto' or one of {', '.join(sacrebleu.BLEU.TOKENIZERS)}, got {tokenizer!r}"
        )
    try:
        return sacrebleu.BLEU(tokenize=chosen, lowercase=lowercase)
    except (RuntimeError, ImportError) as error:
        if tokenizer == "auto":
            return sacrebleu.BLEU(tokenize="char", lowercase=lowercase)
        raise ValueError(f"bleu_tokenizer={tokenizer!r}: {' '.join(str(error).split())}") from None


def _choose_tokenizer(language: str | None, references: Iterable[str]) -> str:
    letters = Counter("".join(islice(references, 1000)))
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            scripts[unicodedata.name(letter, "").partition(" ")[0]] += count
    script = scripts.most_common(1)[0][0] if scripts else "LATIN"
    if language is None:
        # Japanese has Chinese characters as well, and Chinese no kana.
        japanese = scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * scripts.total()
        language = "ja" if japanese else _SCRIPTS.get(script)
    main = (language or "").lower().replace("_", "-").partition("-")[0]
    return _TOKENIZERS.get(main, "13a" if script in _EUROPEAN else "intl")


class CorpusScore(Metric):
    """A score of a whole corpus by `sacreBLEU <https://aclanthology.org/W18-6319>`_, from 0 to 100.

    What is summed over sentences, batches and processes are sacreBLEU's own counts of n-grams, and it makes the score
    of them: so it is the same number, smoothing included. torchmetrics has scores of these names, but its chrF is a
    mean of F-scores where sacreBLEU's is the F-score of mean precision and recall.

    Args:
        scorer: The score, with its options.

    Example:
        >>> score = CorpusScore(sacrebleu.BLEU())
        >>> score.update(["Two dogs run ."], ["Two dogs run in the snow ."])
        >>> round(score.compute().item(), 2), score.signature.partition("|version")[0]
        (30.18, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
    """

    full_state_update = False
    statistics: Tensor

    def __init__(self, scorer: sacrebleu.BLEU | sacrebleu.CHRF) -> None:
        super().__init__()
        self.scorer = scorer
        self.add_state("statistics", self._count(["-"], ["-"]).zero_(), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add sentences, and what they should have been."""
        if hypotheses:
            self.statistics += self._count(hypotheses, references).to(self.statistics.device)

    def compute(self) -> Tensor:
        """Return the score of all sentences so far."""
        return torch.tensor(score_of_statistics(self.scorer, self.statistics.tolist()), dtype=torch.float64)

    @property
    def signature(self) -> str:
        """What others need to know to compute the same score."""
        return str(self.scorer.get_signature())

    def _count(self, hypotheses: Sequence[str], references: Sequence[str]) -> Tensor:
        return torch.tensor(corpus_statistics(self.scorer, hypotheses, references)).sum(0)
