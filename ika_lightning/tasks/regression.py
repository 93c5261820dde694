"""Regression: a number for each row of a table, by attention over the rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score

from ika_lightning.data import RegressionData
from ika_lightning.data.encoders import RowBatch
from ika_lightning.models import AttentionFactory, RowTransformer
from ika_lightning.pictures.results import draw_fit
from ika_lightning.tasks.base import Task, find_layer

# What only the data knows; it is written to the hyper-parameters, so that a checkpoint is enough to build the model.
_FROM_DATA = ("num_features", "num_context", "target_mean", "target_std")

# Heads over the rows of a table are narrow, and learn more from the paper's estimator than beside an exact part. A name
# is what a configuration can show.
_ATTENTION = {"class_path": "ika_lightning.attention.MIKAN", "init_args": {"init": "rbf"}}


class Regression(Task):
    r"""Predict a number for each row of a table; rows attend to the training rows.

    Each row attends to a context of training rows and to nothing else, so a prediction never depends on what else is
    asked. In training, a random part of each batch asks and the rest is its context: what is learned is to answer for
    rows that are not in the context, as in evaluation. There, the context is the training rows (or the data module's
    fixed choice of ``max_context`` of them). It travels in the checkpoint.

    The loss is the squared error of the standardised target plus ``kl_weight`` times the divergence of the
    attention's spectra from their priors. ``val/loss`` and ``test/loss`` are the squared error alone; ``rmse``, ``mae``
    and ``r2`` are in the target's own units. R2 needs two rows and is left out for one.

    Departure from the authors' code, which puts test rows into the sequence and its scaling, and chooses the epoch by
    the test error.

    Args:
        attention: The attention layer, called with (width, num_heads).
        width: Width of the network.
        depth: Number of encoder layers.
        num_heads: Number of attention heads; it must divide the width.
        ffn_width: Hidden width of the feed-forward networks; 4 times the width if None.
        dropout: Probability with which an output of attention or network is dropped in training.
        query_fraction: Share of the rows of a training batch that ask; the others are their context.
        kl_weight: Weight of the attention's regulariser.
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        num_features: Number of features of a row. This and the rest are taken from the data.
        num_context: Number of rows in the context.
        target_mean: Mean of the target over the training rows.
        target_std: Standard deviation of the target over the training rows.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.attention import MIKAN
        >>> from ika_lightning.data import RegressionData
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(Regression(MIKAN, width=16, depth=1, num_heads=2), RegressionData("airline_passengers"))
    """

    net: RowTransformer | None
    context: Tensor

    def __init__(
        self,
        attention: AttentionFactory = _ATTENTION,  # type: ignore[assignment]
        width: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        ffn_width: int | None = None,
        dropout: float = 0.1,
        query_fraction: float = 0.5,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
        compile: bool = False,
        num_features: int | None = None,
        num_context: int | None = None,
        target_mean: float | None = None,
        target_std: float | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile)
        if not 0.0 < query_fraction < 1.0:
            raise ValueError(f"query_fraction must be between 0 and 1, got {query_fraction}")
        self.query_fraction = query_fraction
        self.save_hyperparameters_with_attention("attention")
        self.attention = find_layer(attention)
        self.train_loss = MeanSquaredError()
        self.val_metrics, self.test_metrics = _metrics(), _metrics()
        self._answers: list[tuple[Tensor, Tensor, Tensor]] = []  # of the last validation: rows, answers, truth

    def configure_model(self) -> None:
        """Build the network for the data; without data (in prediction) the checkpoint says how."""
        if self.net is not None:
            return
        data = self.find_data(RegressionData)
        context = data.context if data is not None and data.has_training_data else None
        if data is not None and context is not None:
            self.hparams.update(
                num_features=context.size(1),
                num_context=context.size(0),
                target_mean=data.target_mean,
                target_std=data.target_std,
            )
        if self.hparams["num_features"] is not None:
            self._build()
        if context is not None:
            self.context.copy_(context)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network as the checkpoint's was."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if any(saved.get(name) is None for name in _FROM_DATA):
            raise ValueError("the checkpoint is not one of Regression: it does not say " + ", ".join(_FROM_DATA))
        features = self.hparams["num_features"]
        if self.net is not None and features != saved["num_features"]:
            raise ValueError(
                f"the checkpoint was trained on {saved['num_features']} features, but the data has {features}; "
                "evaluate it on data with the same columns"
            )
        self.hparams.update({name: saved[name] for name in _FROM_DATA})
        self._build()

    def forward(self, rows: Tensor) -> Tensor:
        """Predict the standardised target of standardised rows (r, num_features), from the context; returns (r,)."""
        assert self.net is not None
        answers: Tensor = self.net(self.context, rows)
        return answers

    def training_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        """Return the loss of the first rows of a batch, which is in random order, with the others as context."""
        assert self.net is not None
        asking = max(1, int(self.query_fraction * len(batch.target)))
        answers, target = self.net(batch.features[asking:], batch.features[:asking]), batch.target[:asking]
        self.train_loss.update(answers.detach(), target)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True)
        return self.objective(F.mse_loss(answers, target), len(target))

    def validation_step(self, batch: RowBatch, batch_idx: int) -> None:
        """Measure a batch of validation rows."""
        answers = self._measure(self.val_metrics, batch)
        if batch_idx == 0:
            self._answers = []
        self._answers.append((batch.row, answers, batch.target))

    def test_step(self, batch: RowBatch, batch_idx: int) -> None:
        """Measure a batch of test rows."""
        self._measure(self.test_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what was measured."""
        self._log_metrics("test", self.test_metrics)

    def predict_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        """Return predictions in the target's own units, float64 (r,): a large mean must not cost digits."""
        scaled: Tensor = self(batch.features).cpu().double()
        in_units: Tensor = self.hparams["target_mean"] + self.hparams["target_std"] * scaled
        return in_units

    def pictures(self) -> dict[str, Callable[[], Any]]:
        """Return what can be drawn of the last validation; in distributed training, of this process's rows."""
        data = self.find_data(RegressionData)
        if data is None or not self._answers:
            return {}
        row, *scaled = (torch.cat(parts).cpu() for parts in zip(*self._answers, strict=True))
        answers, target = (self.hparams["target_mean"] + self.hparams["target_std"] * x.double() for x in scaled)
        return {"results/fit": partial(draw_fit, row, answers, target, data.target_name)}

    def rehearse(self) -> Tensor:
        """Answer for the rows of the context, which a checkpoint has: what can be watched without any data."""
        return self(self.context[-1:])

    def _build(self) -> None:
        sizes = self.hparams
        if self.net is None:
            self.net = RowTransformer(
                sizes["num_features"],
                width=sizes["width"],
                depth=sizes["depth"],
                num_heads=sizes["num_heads"],
                attention=self.attention,
                ffn_width=sizes["ffn_width"],
                dropout=sizes["dropout"],
            )
        context = torch.zeros(sizes["num_context"], sizes["num_features"], device=self.device)
        self.register_buffer("context", context)

    def _measure(self, metrics: MetricCollection, batch: RowBatch) -> Tensor:
        """Update the metrics with a batch, and return its predictions."""
        if not len(batch.target):  # the share of one process may have none
            return batch.target
        answers = self(batch.features)
        metrics.update(answers, batch.target)
        return answers

    def _log_metrics(self, stage: str, metrics: MetricCollection) -> None:
        """Log the errors in the target's own units: they were measured on the standardised scale."""
        rows = self.trainer.strategy.reduce(metrics["r2"].total.clone(), reduce_op="sum")  # type: ignore[operator]
        for name, metric in metrics.items():
            if name == "r2" and rows < 2:
                continue
            unit = self.hparams["target_std"] if name in ("rmse", "mae") else 1.0
            self.log(f"{stage}/{name}", metric.compute() * unit, prog_bar=name == "rmse")
        metrics.reset()


def _metrics() -> MetricCollection:
    metrics = {
        "loss": MeanSquaredError(),
        "rmse": MeanSquaredError(squared=False),
        "mae": MeanAbsoluteError(),
        "r2": R2Score(),
    }
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]
