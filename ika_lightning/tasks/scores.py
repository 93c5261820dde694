"""BLEU and chrF as sacreBLEU computes them, over many batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor
from torchmetrics import Metric


class CorpusScore(Metric):
    """A score of a whole corpus by `sacreBLEU <https://aclanthology.org/W18-6319>`_, from 0 to 100.

    What is summed over sentences, batches and processes are sacreBLEU's own counts of n-grams, and it makes the score
    of them: so it is the same number, smoothing included. torchmetrics has scores of these names, but its chrF is a
    mean of F-scores where sacreBLEU's is the F-score of mean precision and recall.

    Args:
        scorer: The score, with its options.

    Example:
        >>> score = CorpusScore(BLEU())
        >>> score.update(["Two dogs run ."], ["Two dogs run in the snow ."])
        >>> round(score.compute().item(), 2), score.signature.partition("|version")[0]
        (30.18, 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp')
    """

    full_state_update = False
    statistics: Tensor

    def __init__(self, scorer: BLEU | CHRF) -> None:
        super().__init__()
        self.scorer = scorer
        self.add_state("statistics", self._count(["-"], ["-"]).zero_(), dist_reduce_fx="sum")

    def update(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Add sentences, and what they should have been."""
        if hypotheses:
            self.statistics += self._count(hypotheses, references).to(self.statistics.device)

    def compute(self) -> Tensor:
        """Return the score of all sentences so far."""
        score: Any = self.scorer._compute_score_from_stats(self.statistics.tolist())
        return torch.tensor(score.score, dtype=torch.float64)

    @property
    def signature(self) -> str:
        """What others need to know to compute the same score."""
        return str(self.scorer.get_signature())

    def _count(self, hypotheses: Sequence[str], references: Sequence[str]) -> Tensor:
        return torch.tensor(self.scorer._extract_corpus_statistics(hypotheses, [references])).sum(0)
