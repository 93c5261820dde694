"""Regression: a number for each row of a table, by attention over the rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score

from ika_lightning.data import RegressionData
from ika_lightning.data.encoders import RowBatch
from ika_lightning.data.messages import quoted
from ika_lightning.models import AttentionFactory, RowTransformer
from ika_lightning.models.inference import ContextRegressor
from ika_lightning.pictures.results import draw_fit
from ika_lightning.protocols import Figures, Program
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.recipe import Recipe
from ika_lightning.tasks.schedule import WarmupCosine
from ika_lightning.tasks.start import Start

# Heads over the rows of a table are narrow, and learn more from the paper's estimator than beside an exact part. A name
# is what a configuration can show.
_ATTENTION = {"class_path": "ika_lightning.attention.IKANDirect", "init_args": {"init": "rbf"}}


class Regression(Task[RegressionData]):
    r"""Predict a number for each row of a table; rows attend to the training rows.

    Each row attends to a context of training rows and to nothing else, so a prediction never depends on what else is
    asked. Rows of the context bring their targets, rows that ask do not know theirs: so attention is kernel regression.
    In training, a random part of each batch asks and the rest is its context: what is learned is to answer for rows
    that are not in the context, as in evaluation. There, the context is the training rows (or the data module's fixed
    choice of ``max_context`` of them). It travels in the checkpoint.

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
        context_targets: Whether rows of the context bring their targets. Without, attention finds similar rows, but not
            what became of them.
        kl_weight: Weight of the attention's regulariser.
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        init_from: A checkpoint whose weights a new training starts from; the columns have to be those that it was
            trained on, context and scale are those of the new table.
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

    net: RowTransformer
    context: Tensor
    context_target: Tensor
    data_class = RegressionData
    sizes = ("num_features", "num_context", "target_mean", "target_std")
    fixed = ("num_features",)
    earlier = MappingProxyType({"context_targets": False})
    encoding = ("target", "target_mean", "target_std", "columns")
    headline = "rmse"
    recipe = Recipe(updates=2000)

    def __init__(
        self,
        attention: AttentionFactory = _ATTENTION,  # type: ignore[assignment]
        width: int = 64,
        depth: int = 2,
        num_heads: int = 8,
        ffn_width: int | None = None,
        dropout: float = 0.1,
        query_fraction: float = 0.5,
        context_targets: bool = True,
        kl_weight: float = 0.01,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=0.006),
        scheduler: LRSchedulerCallable | None = WarmupCosine,
        compile: bool = False,
        init_from: str | None = None,
        num_features: int | None = None,
        num_context: int | None = None,
        target_mean: float | None = None,
        target_std: float | None = None,
    ) -> None:
        super().__init__(optimizer, scheduler, kl_weight, compile, init_from)
        if not 0.0 < query_fraction < 1.0:
            raise ValueError(f"query_fraction must be between 0 and 1, got {query_fraction}")
        self.query_fraction = query_fraction
        self.save_hyperparameters(ignore=UNSAVED)
        self.save_arguments("attention")
        self.attention = find_layer(attention)
        # of the last validation: rows, answers, truth
        self._answers: list[tuple[Tensor, Tensor, Tensor]] = []

    def read_sizes(self, data: RegressionData) -> dict[str, Any] | None:
        """Return the sizes of the training rows, and the scale of their target."""
        if not data.has_training_data:
            return None
        num_context, num_features = data.context.shape
        return {
            "num_features": num_features,
            "num_context": num_context,
            "target_mean": data.target_mean,
            "target_std": data.target_std,
        }

    def learned_part(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the state of the encoder; how new rows are read does not change what the weights mean."""
        return state.get("encoder", {})

    def build(self) -> RowTransformer:
        """Make the network, and room for its context."""
        sizes = self.hparams
        context = torch.zeros(sizes["num_context"], sizes["num_features"], device=self.device)
        self.register_buffer("context", context)
        self.register_buffer("context_target", context.new_zeros(len(context)) if sizes["context_targets"] else None)
        return RowTransformer(
            sizes["num_features"],
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            attention=self.attention,
            ffn_width=sizes["ffn_width"],
            dropout=sizes["dropout"],
            targets=sizes["context_targets"],
        )

    def receive(self, data: RegressionData) -> None:
        """Take the context: features of training rows, and their targets."""
        context, target = data.context, data.context_target
        self.context = torch.empty(context.shape, device=self.device).copy_(context)
        if self.hparams["context_targets"]:
            self.context_target = torch.empty(target.shape, device=self.device).copy_(target)

    def adapt(self, start: Start, data: RegressionData) -> tuple[dict[str, Tensor], str]:
        """Keep all weights, for a table of the same columns."""
        there, here = (
            [(column["name"], column.get("categories")) for column in state.get("columns") or ()]
            for state in (start.encoding, self._encoding_of(data))
        )
        if there != here or start.hparams["num_features"] != self.hparams["num_features"]:
            raise ValueError(
                f"{start.source} was trained on {start.hparams['num_features']} features ({_columns(there)}), but this "
                f"table has {self.hparams['num_features']} ({_columns(here)}); give a table of the same columns and "
                "categories, or train anew"
            )
        return dict(start.weights), "with the context and the scale of the new table"

    def forward(self, rows: Tensor) -> Tensor:
        """Predict the standardised target of standardised rows (r, num_features), from the context; returns (r,)."""
        answers: Tensor = self.net(self.context, rows, self.context_target)
        return answers

    def loss(self, batch: RowBatch) -> Loss:
        """Return the loss of the first rows of a batch, which is in random order, with the others as context."""
        asking = max(1, int(self.query_fraction * len(batch.target)))
        target, known = batch.target[:asking], batch.target[asking:] if self.hparams["context_targets"] else None
        answers = self.net(batch.features[asking:], batch.features[:asking], known)
        return Loss(F.mse_loss(answers, target), len(target))

    def make_metrics(self) -> dict[str, Metric]:
        """Make the errors, on the standardised scale."""
        return {
            "loss": MeanSquaredError(),
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
        }

    def measure(self, batch: RowBatch, metrics: MetricCollection, stage: Stage) -> None:
        """Measure the rows of a batch."""
        # the share of one process may have none
        if not len(batch.target):
            return
        answers = self(batch.features)
        metrics.update(answers, batch.target)
        if stage == "val":
            self._answers.append((batch.row, answers, batch.target))

    def on_validation_epoch_start(self) -> None:
        """Forget what was answered in the validation before."""
        self._answers = []

    def summarise(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Return the errors in the target's own units, and R2 if there are two rows."""
        rows = self.trainer.strategy.reduce(metrics["r2"].total.clone(), reduce_op="sum")  # type: ignore[operator]
        units = {"rmse": self.hparams["target_std"], "mae": self.hparams["target_std"]}
        return {
            name: metric.compute() * units.get(name, 1.0)
            for name, metric in metrics.items()
            if name != "r2" or rows >= 2
        }

    def predict_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        """Return predictions in the target's own units, float64 (r,): a large mean must not cost digits."""
        return self._in_units(self(batch.features))

    def pictures(self) -> Figures:
        """Return what can be drawn of the last validation; in distributed training, of this process's rows."""
        if self.data is None or not self._answers:
            return {}
        row, answers, target = (torch.cat(parts) for parts in zip(*self._answers, strict=True))
        units = self._in_units(answers), self._in_units(target)
        return {"results/fit": partial(draw_fit, row.cpu(), *units, self.data.target_name)}

    def run_example(self) -> Tensor:
        """Answer for a row of the context, which a checkpoint has."""
        return self(self.context[-1:])

    def export_program(self, data: RegressionData) -> Program:
        """Return what predicts in the target's own units; the context is a part of it."""
        mean, std, width = (self.hparams[name] for name in ("target_mean", "target_std", "num_features"))
        return Program(
            ContextRegressor(self.net, self.context, self.context_target, mean, std),
            example={"features": torch.linspace(-1.0, 1.0, 11 * width).view(11, width)},
            axes={"features": {0: "rows"}, "prediction": {0: "rows"}},
            meaning={
                "features": "the rows to predict for, encoded",
                "prediction": f"{data.target_name!r} of each row, in the unit of the training table",
            },
            encoding=data.learned.describe(),
        )

    def _in_units(self, scaled: Tensor) -> Tensor:
        in_units: Tensor = self.hparams["target_mean"] + self.hparams["target_std"] * scaled.cpu().double()
        return in_units


def _columns(columns: list[tuple[str, Any]]) -> str:
    return quoted([name for name, _ in columns]) or "unknown"
