"""Translation: a sentence for a sentence, by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection

from ika_lightning.attention import MIKAN
from ika_lightning.data import TranslationBatch, TranslationData
from ika_lightning.data.tokenizer import END, PADDING, START, UNKNOWN
from ika_lightning.models import AttentionFactory, EncoderDecoder
from ika_lightning.models.decoding import Hypothesis, Search
from ika_lightning.tasks.base import Task, find_layer
from ika_lightning.tasks.scores import CorpusScore, make_bleu

SAMPLES = 5  # sentences whose translations are shown at each validation


class Translation(Task):
    r"""Translate sentences by an encoder-decoder over parts of words.

    The loss is the cross-entropy of the next token, with label smoothing, plus ``kl_weight`` times the divergence of
    the attention's spectra from their priors. It is the mean over all tokens of an update, whatever batches and
    processes they came from: two batches with ``accumulate_grad_batches=2`` are one batch of both.

    ``val/loss`` and ``test/loss`` are without smoothing. Validation translates greedily, testing and prediction by beam
    search. ``bleu`` (cased) and ``chrf`` are those of sacreBLEU, from 0 to 100; testing prints their signatures. Where
    a published figure is of lower-cased, tokenised text, ``bleu_lowercase`` is what compares with it.
    ``exact_match`` is the share of the translations that are their reference to the letter.

    To train with averaged weights, add ``lightning.pytorch.callbacks.EMAWeightAveraging`` to the trainer: validation
    and checkpoints then have the averages.

    Args:
        attention: The attention layer of the encoder, called with (width, num_heads).
        decoder_attention: That of the decoder to its own words; as ``attention`` if None.
        cross_attention: That of the decoder to the source; as ``attention`` if None.
        width: Width of the network.
        depth: Number of layers of encoder and decoder each.
        num_heads: Number of attention heads; it must divide the width.
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an embedding, or an output of attention or network, is dropped in training.
        label_smoothing: Share of the probability that the target of training spreads over all tokens.
        kl_weight: Weight of the attention's regulariser.
        beam: How many beginnings of a translation beam search keeps; 1 is greedy.
        length_penalty: Exponent of the length that scores are divided by; larger prefers longer translations.
        n_best: How many translations of each line to predict.
        bleu_tokenizer: Which of sacreBLEU's tokenizers cuts sentences for BLEU: ``13a``, ``intl``, ``zh``,
            ``ja-mecab``, ``ko-mecab``, ``char``, ... ``"auto"`` chooses by the language of the translations.
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each update; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        source_vocabulary: Number of source tokens. This and the next are taken from the data.
        target_vocabulary: Number of target tokens; None if both sides share one vocabulary.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import TranslationData
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False, limit_val_batches=1)
        >>> trainer.fit(Translation(MIKAN, width=16, depth=1, num_heads=2), TranslationData("dates", vocabulary=300))
    """

    net: EncoderDecoder | None
    scheduler_interval = "step"

    def __init__(
        self,
        attention: AttentionFactory = MIKAN,
        decoder_attention: AttentionFactory | None = None,
        cross_attention: AttentionFactory | None = None,
        width: int = 256,
        depth: int = 3,
        num_heads: int = 4,
        ffn_width: int | None = None,
        dropout: float = 0.1,
        label_smoothing: float = 0.1,
        kl_weight: float = 0.01,
        beam: int = 5,
        length_penalty: float = 1.0,
        n_best: int = 1,
        bleu_tokenizer: str = "auto",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        source_vocabulary: int | None = None,
        target_vocabulary: int | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if not 1 <= n_best <= beam:
            raise ValueError(f"n_best must be from 1 to beam={beam}, got {n_best}")
        attentions = {
            "attention": attention, "decoder_attention": decoder_attention, "cross_attention": cross_attention,
        }  # fmt: skip
        given = [name for name, layer in attentions.items() if layer is not None]
        self.save_hyperparameters_with_attention(*given)
        self.attentions = {name: find_layer(attentions[name]) for name in given}
        self.label_smoothing = label_smoothing
        self.n_best = n_best
        special = {"start": START, "end": END, "never": (PADDING, UNKNOWN, START)}
        self.search = Search(**special, beam=beam, length_penalty=length_penalty)  # type: ignore[arg-type]
        self.greedy_search = Search(**special, beam=1)  # type: ignore[arg-type]
        self.bleu_tokenizer = bleu_tokenizer
        self.train_loss = MeanMetric()
        self._set_metrics(BLEU())
        self._samples: dict[int, tuple[str, str, str]] = {}
        self._sampled: list[tuple[str, str, str]] = []  # in the last validation

    def setup(self, stage: str) -> None:
        """Choose how BLEU cuts up sentences, by the language that the data translates to."""
        super().setup(stage)
        data = self.find_data(TranslationData)
        if data is None or stage == "predict":
            return
        how = self.bleu_tokenizer, data.target_language, data.references
        self._set_metrics(make_bleu(*how), make_bleu(*how, lowercase=True) if data.compares_in_lowercase else None)

    def _set_metrics(self, bleu: BLEU, bleu_lowercase: BLEU | None = None) -> None:
        self.val_metrics, self.test_metrics = _metrics(bleu, bleu_lowercase), _metrics(bleu, bleu_lowercase)

    def configure_model(self) -> None:
        """Build the network for the data; without data (in prediction) the checkpoint says how."""
        if self.net is not None:
            return
        data = self.find_data(TranslationData)
        if data is not None and data.vocabularies is not None:
            source, target = data.vocabularies
            self.hparams.update(source_vocabulary=source, target_vocabulary=target)
        if self.hparams["source_vocabulary"] is not None:
            self._build()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network as the checkpoint's was."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if saved.get("source_vocabulary") is None:
            raise ValueError("the checkpoint is not one of Translation: it does not say source_vocabulary")
        sizes = {name: saved[name] for name in ("source_vocabulary", "target_vocabulary")}
        if self.net is not None and any(self.hparams[name] != size for name, size in sizes.items()):
            raise ValueError(
                f"the checkpoint was trained with other vocabularies ({sizes}) than this data has; go on with the data "
                "that it was trained on"
            )
        self.hparams.update(sizes)
        if self.net is None:
            self._build()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the scores of the token after each target token: (b, m), (b, n) -> (b, n, target_vocabulary)."""
        assert self.net is not None
        scores: Tensor = self.net(source, target)
        return scores

    def training_step(self, batch: TranslationBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, tokens = self._cross_entropy(batch, self.label_smoothing)
        self.train_loss.update(loss.detach(), weight=tokens)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return self.objective(loss, tokens, inputs=len(batch.number))

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Measure a batch of validation sentences, translated greedily."""
        translations = self._measure(batch, self.greedy_search, self.val_metrics)
        for number, texts, translation in zip(batch.number.tolist(), batch.texts, translations, strict=True):
            if number < SAMPLES:
                self._samples[number] = (*texts, translation)

    def test_step(self, batch: TranslationBatch, batch_idx: int) -> None:
        """Measure a batch of test sentences, translated by beam search."""
        self._measure(batch, self.search, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and a few translations."""
        self._log_metrics("val", self.val_metrics)
        self._sampled = rows = [self._samples[number] for number in sorted(self._samples)]
        self._samples = {}
        if isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            table = ["| sentence | reference | translation |", "| --- | --- | --- |"]
            table += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
            self.logger.experiment.add_text("val/samples", "\n".join(table), self.global_step - 1)

    def on_test_epoch_end(self) -> None:
        """Log what was measured, and print how, for others to compare."""
        measured = self._log_metrics("test", self.test_metrics)
        for name, score in self.test_metrics.items():
            if isinstance(score, CorpusScore):
                self.print(f"{name} {measured[name]:.2f} {score.signature}")

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[tuple[int, list[list[Hypothesis]]]]:
        """Return, for each line of the batch, its number and the translations of each of its pieces, as tokens."""
        assert self.net is not None
        lines: dict[int, list[list[Hypothesis]]] = {}
        found = self.search(self.net, batch.source, self.n_best)
        for number, hypotheses in zip(batch.number.tolist(), found, strict=True):
            lines.setdefault(number, []).append(hypotheses)
        return list(lines.items())

    def tables(self) -> dict[str, tuple[Sequence[str], Sequence[Sequence[str]]]]:
        """Return what can be told of the last validation: a few translations."""
        return {"Translations": (("sentence", "reference", "translation"), self._sampled)} if self._sampled else {}

    def attention_names(self, batch: TranslationBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: tokens of the sentences, of their translations, or of both."""
        data = self.find_data(TranslationData)
        if data is None:
            return None
        # the decoder reads all of a translation but its end
        sources, targets = data.token_names(batch.source), data.token_names(batch.target[:, :-1], target=True)
        if "cross_attention" in layer:
            return targets, sources
        return (targets, targets) if "self_attention" in layer else (sources, sources)

    def _build(self) -> None:
        sizes = self.hparams
        self.net = EncoderDecoder(
            sizes["source_vocabulary"],
            sizes["target_vocabulary"],
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            ffn_width=sizes["ffn_width"],
            dropout=sizes["dropout"],
            padding=PADDING,
            **self.attentions,
        )

    def _cross_entropy(self, batch: TranslationBatch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the mean over the target tokens of a batch, and their number."""
        inputs, labels = batch.target[:, :-1], batch.target[:, 1:]
        scores = self(batch.source, inputs)
        loss = F.cross_entropy(
            scores.flatten(0, 1),
            labels.flatten(),
            ignore_index=PADDING,
            label_smoothing=label_smoothing,
        )
        return loss, (labels != PADDING).sum()

    def _measure(self, batch: TranslationBatch, search: Search, metrics: MetricCollection) -> list[str]:
        """Update the metrics with a batch, and return its translations."""
        assert self.net is not None
        if not len(batch.number):  # the share of one process may have none
            return []
        loss, tokens = self._cross_entropy(batch)
        metrics["loss"].update(loss, weight=tokens)
        best = [hypotheses[0].tokens for hypotheses in search(self.net, batch.source)]
        translations: list[str] = self.trainer.datamodule.target_texts(best)  # type: ignore[attr-defined]
        references = [reference for _, reference in batch.texts]
        for score in metrics.values():
            if isinstance(score, CorpusScore):
                score.update(translations, references)
        matches = [float(written == reference) for written, reference in zip(translations, references, strict=True)]
        metrics["exact_match"].update(matches)
        return translations

    def _log_metrics(self, stage: str, metrics: MetricCollection) -> dict[str, float]:
        measured = {name: metric.compute().item() for name, metric in metrics.items()}
        metrics.reset()
        for name, value in measured.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "bleu")
        return measured


def _metrics(bleu: BLEU, bleu_lowercase: BLEU | None) -> MetricCollection:
    scores = {"bleu": CorpusScore(bleu), "chrf": CorpusScore(CHRF())}
    if bleu_lowercase is not None:
        scores["bleu_lowercase"] = CorpusScore(bleu_lowercase)
    metrics = {"loss": MeanMetric(), **scores, "exact_match": MeanMetric()}
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
