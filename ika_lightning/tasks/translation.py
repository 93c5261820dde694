"""Translation: a sentence for a sentence, by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from ika_lightning.attention import MIKAN
from ika_lightning.data import TranslationBatch, TranslationData
from ika_lightning.data.tokenizer import END, PADDING, START, UNKNOWN, Tokenizer
from ika_lightning.lazy import sacrebleu
from ika_lightning.models import AttentionFactory, EncoderDecoder
from ika_lightning.models.decoding import Hypothesis, Search
from ika_lightning.models.inference import NextTokens
from ika_lightning.protocols import Program, Tables
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.scores import CorpusScore, make_bleu
from ika_lightning.tasks.start import Start, carry_rows, read_words

#: Sentences whose translations are shown at each validation.
SAMPLES = 5


class Translation(Task[TranslationData]):
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
        init_from: A checkpoint whose weights a new training starts from. The vocabulary is that of the new sentences;
            tokens that both know keep their embeddings.
        source_vocabulary: Number of source tokens. This and the next are taken from the data.
        target_vocabulary: Number of target tokens; None if both sides share one vocabulary.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.data import TranslationData
        >>> trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False, limit_val_batches=1)
        >>> trainer.fit(Translation(MIKAN, width=16, depth=1, num_heads=2), TranslationData("dates", vocabulary=300))
    """

    net: EncoderDecoder
    data_class = TranslationData
    sizes = ("source_vocabulary", "target_vocabulary")
    optional_sizes = ("target_vocabulary",)
    fixed = sizes
    encoding = ("source", "target")
    headline = "bleu"
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
        init_from: str | None = None,
        source_vocabulary: int | None = None,
        target_vocabulary: int | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile, init_from)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1, got {label_smoothing}")
        if not 1 <= n_best <= beam:
            raise ValueError(f"n_best must be from 1 to beam={beam}, got {n_best}")
        attentions = {
            "attention": attention, "decoder_attention": decoder_attention, "cross_attention": cross_attention,
        }  # fmt: skip
        given = [name for name, layer in attentions.items() if layer is not None]
        self.save_hyperparameters(ignore=UNSAVED)
        self.save_arguments(*given)
        self.attentions = {name: find_layer(attentions[name]) for name in given}
        self.label_smoothing = label_smoothing
        self.n_best = n_best
        special = {"start": START, "end": END, "never": (PADDING, UNKNOWN, START)}
        self.search = Search(**special, beam=beam, length_penalty=length_penalty)  # type: ignore[arg-type]
        self.greedy_search = Search(**special, beam=1)  # type: ignore[arg-type]
        self.bleu_tokenizer = bleu_tokenizer
        # of the validation that is going on, by their numbers, and of the last one
        self._samples: dict[int, tuple[str, str, str]] = {}
        self._sampled: list[tuple[str, str, str]] = []

    def read_sizes(self, data: TranslationData) -> dict[str, Any] | None:
        """Return the sizes of the vocabularies."""
        return None if data.vocabularies is None else dict(zip(self.sizes, data.vocabularies, strict=True))

    def build(self) -> EncoderDecoder:
        """Make the network."""
        sizes = self.hparams
        return EncoderDecoder(
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

    def adapt(self, start: Start, data: TranslationData) -> tuple[dict[str, Tensor], str]:
        """Keep the embeddings of tokens that both vocabularies have; where both sides share one, the target's last."""
        weights, own, notes = dict(start.weights), self._encoding_of(data), []
        table = self.net.source_embedding.weight
        for side in self.encoding:
            key, shared_table = f"{side}_embedding.weight", own["target"] is None
            if side == "target" and not shared_table:
                table = self.net.target_embedding.weight
            if start.weights[key].shape[1:] != table.shape[1:]:
                break
            words = Tokenizer(own[side] or own["source"]).words
            table, shared = carry_rows(start.weights[key], read_words(start, side, "source"), table, words)
            weights[key] = table
            notes.append(f"{shared} of the {len(words)} {side} tokens")
        if own["target"] is None:
            weights["source_embedding.weight"] = weights["target_embedding.weight"]
        return weights, f"{' and '.join(notes)} keep their embeddings"

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the scores of the token after each target token: (b, m), (b, n) -> (b, n, target_vocabulary)."""
        scores: Tensor = self.net(source, target)
        return scores

    def loss(self, batch: TranslationBatch) -> Loss:
        """Return the loss of a batch, whose samples are tokens."""
        return self._cross_entropy(batch, self.label_smoothing)

    def make_metrics(self) -> dict[str, Metric]:
        """Make what is measured of translations; the language of the data says how BLEU cuts up sentences."""
        data = self.data
        how = (self.bleu_tokenizer, data.target_language, data.references) if data else (self.bleu_tokenizer, None, [])
        metrics: dict[str, Metric] = {
            "loss": MeanMetric(), "bleu": CorpusScore(make_bleu(*how)), "chrf": CorpusScore(sacrebleu.CHRF()),
        }  # fmt: skip
        if data is not None and data.compares_in_lowercase:
            metrics["bleu_lowercase"] = CorpusScore(make_bleu(*how, lowercase=True))
        return metrics | {"exact_match": MeanMetric()}

    def measure(self, batch: TranslationBatch, metrics: MetricCollection, stage: Stage) -> None:
        """Measure a batch of sentences: validation translates greedily, a test by beam search."""
        # the share of one process may have none
        if not len(batch.number):
            return
        assert self.data is not None
        metrics["loss"].update(*self._cross_entropy(batch))
        search = self.greedy_search if stage == "val" else self.search
        translations = self.data.target_texts(best[0].tokens for best in search(self.net, batch.source))
        references = [reference for _, reference in batch.texts]
        for score in metrics.values():
            if isinstance(score, CorpusScore):
                score.update(translations, references)
        matches = [float(written == reference) for written, reference in zip(translations, references, strict=True)]
        metrics["exact_match"].update(matches)
        if stage == "val":
            for number, texts, translation in zip(batch.number.tolist(), batch.texts, translations, strict=True):
                if number < SAMPLES:
                    self._samples[number] = (*texts, translation)

    def show(self, stage: Stage, measured: Mapping[str, Tensor]) -> None:
        """Show a few translations of validation; of a test print how it was measured, for others to compare."""
        if stage == "test":
            for name, score in self.test_metrics.items():
                if isinstance(score, CorpusScore):
                    self.print(f"{name} {measured[name]:.2f} {score.signature}")
            return
        self._sampled = rows = [self._samples[number] for number in sorted(self._samples)]
        self._samples = {}
        if isinstance(self.logger, TensorBoardLogger) and not self.trainer.sanity_checking:
            table = ["| sentence | reference | translation |", "| --- | --- | --- |"]
            table += ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
            self.logger.experiment.add_text("val/samples", "\n".join(table), self.global_step - 1)

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[tuple[int, list[list[Hypothesis]]]]:
        """Return, for each line of the batch, its number and the translations of each of its pieces, as tokens."""
        lines: dict[int, list[list[Hypothesis]]] = {}
        found = self.search(self.net, batch.source, self.n_best)
        for number, hypotheses in zip(batch.number.tolist(), found, strict=True):
            lines.setdefault(number, []).append(hypotheses)
        return list(lines.items())

    def export_program(self, data: TranslationData) -> Program:
        """Return what scores the next tokens of translations; the search for the best translation is not in it."""
        return Program(
            NextTokens(self.net),
            example={"source": torch.full((5, 7), UNKNOWN).tril(3), "target": torch.full((5, 11), UNKNOWN)},
            axes={
                "source": {0: "sentences", 1: "source_tokens"},
                "target": {0: "sentences", 1: "target_tokens"},
                "log_probabilities": {0: "sentences", 1: "target_tokens"},
            },
            meaning={
                "source": "the ids of the tokens of each sentence, then padding",
                "target": "the ids of the tokens of its translation so far",
                "log_probabilities": "the logarithm of the probability of each token, after each token of target",
            },
            encoding=data.learned.describe(),
            note="beam search is not in it: it scores next tokens, and translates nothing by itself",
        )

    def tables(self) -> Tables:
        """Return what can be told of the last validation: a few translations."""
        return {"Translations": (("sentence", "reference", "translation"), self._sampled)} if self._sampled else {}

    def describe_attention(self, layer: str) -> tuple[str, str]:
        """Say what attends and what is attended to, by the names of the layers."""
        sentence, translation = "source tokens", "target tokens"
        if "cross_attention" in layer:
            return translation, sentence
        return (translation, translation) if "self_attention" in layer else (sentence, sentence)

    def attention_names(self, batch: TranslationBatch, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to: tokens of the sentences, of their translations, or of both."""
        data = self.data
        if data is None:
            return None
        # the decoder reads all of a translation but its end
        sources, targets = data.token_names(batch.source), data.token_names(batch.target[:, :-1], target=True)
        if "cross_attention" in layer:
            return targets, sources
        return (targets, targets) if "self_attention" in layer else (sources, sources)

    def _cross_entropy(self, batch: TranslationBatch, label_smoothing: float = 0.0) -> Loss:
        """Return the mean over the target tokens of a batch, and their number."""
        inputs, labels = batch.target[:, :-1], batch.target[:, 1:]
        scores = self(batch.source, inputs)
        loss = F.cross_entropy(
            scores.flatten(0, 1),
            labels.flatten(),
            ignore_index=PADDING,
            label_smoothing=label_smoothing,
        )
        return Loss(loss, (labels != PADDING).sum())
