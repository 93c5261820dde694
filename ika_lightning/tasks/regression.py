"""Regression: a number for each row of a table, by attention over the rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric, MetricCollection, R2Score

from ika_lightning.data import RegressionData
from ika_lightning.data.checks import check_choices, check_least
from ika_lightning.data.encoders import RowBatch
from ika_lightning.data.messages import quoted
from ika_lightning.data.rows import RowPredictions
from ika_lightning.models import AttentionFactory, Ensemble, RowTransformer, SpectralDraws
from ika_lightning.models.inference import ContextRegressor
from ika_lightning.models.rows import NumberEmbedding
from ika_lightning.pictures.results import draw_calibration, draw_fit
from ika_lightning.protocols import Figures, Program
from ika_lightning.tasks.base import UNSAVED, Loss, Stage, Task
from ika_lightning.tasks.intervals import Intervals
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.recipe import Recipe
from ika_lightning.tasks.schedule import WarmupCosine
from ika_lightning.tasks.start import Start
from ika_lightning.tasks.uncertainty import Answer, believe, gaussian_crps, gaussian_nll, scores

log = logging.getLogger(__name__)

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

    With ``likelihood="gaussian"`` the answer for a row is a normal distribution: a mean and a standard deviation. The
    loss is then the negative log-likelihood of the standardised target, as ``val/loss`` and ``test/loss``. In training
    each row weighs what its standard deviation is, taken as a constant (`beta-NLL
    <https://arxiv.org/abs/2203.09168>`_ with beta = 0.5), so that rows are not given up on as noise. ``nll`` is that of
    the target in its own unit, and ``crps`` the continuous ranked probability score, in that unit.

    Each validation measures how far its rows are from their predictions, in standard deviations where there is a
    likelihood, and the checkpoint keeps these scores. By them, predictions come with an interval that holds the target
    of a new row with a probability of ``interval``, whatever the distribution (split conformal prediction). ``test``
    measures of it ``coverage``, the share of targets that are inside, and ``width``, in the target's unit. The
    validation rows also choose the epoch that is kept, so coverage is a little less than it would be by rows that
    choose nothing. Scores are those of the very weights: there is no interval for weights that were updated since their
    last validation, nor with too few rows for it, fewer than ``interval / (1 - interval)``.

    An ``ensemble`` of several networks sees the same batches, but each has weights, dropout and noise of its own. The
    loss is the mean over them. What is answered, and measured, is their mixture: its mean, and as standard deviation
    the spread of their means together with the standard deviations of each (Lakshminarayanan et al. 2017). Without a
    likelihood, that is the spread alone, of three networks or more: it tells where they disagree, and not how far
    targets are from the mean, so it is written with predictions but makes no interval wider. So it is with several
    ``draws`` of the spectra of IKAN or MIKAN, whose kernels are known by samples: they cost nothing in training, and
    tell how unsure that makes them.

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
        embedding: How the features of a row become a vector: ``"linear"``, or ``"periodic"`` with learned waves of each
            of them; see :class:`~ika_lightning.models.PeriodicEmbedding`.
        frequency_scale: Standard deviation of the frequencies of these waves at the start, in periods per standard
            deviation of a feature: the larger, the steeper the target may be in each.
        kl_weight: Weight of the attention's regulariser.
        ensemble: How many networks are trained together and asked together; training takes that many times as long.
            None is as many as in a checkpoint that is loaded, or is ``init_from``; else two where the command line says
            the length of the training, and otherwise one.
        draws: How many draws of implicit spectra are asked together in evaluation; see
            :class:`~ika_lightning.models.SpectralDraws`.
        likelihood: ``"gaussian"`` answers with a mean and a standard deviation; None with a number, by squared error.
        interval: The probability with which intervals hold the target, in (0, 1).
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each epoch; None keeps the learning rate.
        compile: Compile the network with ``torch.compile`` for training, which takes a C++ compiler.
        init_from: A checkpoint whose weights a new training starts from; the columns have to be those that it was
            trained on, context and scale are those of the new table.
        num_features: Number of features of a row. This and the rest are taken from the data.
        num_context: Number of rows in the context.
        target_mean: Mean of the target over the training rows.
        target_std: Standard deviation of the target over the training rows.

    Attributes:
        intervals: What intervals are made by: scores of the rows of the last validation, on the standardised scale, or
            in standard deviations where there is a likelihood.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from ika_lightning.attention import MIKAN
        >>> from ika_lightning.data import RegressionData
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...                   enable_model_summary=False)
        >>> trainer.fit(Regression(MIKAN, width=16, depth=1, num_heads=2), RegressionData("airline_passengers"))
    """

    net: RowTransformer | Ensemble
    context: Tensor
    context_target: Tensor
    data_class = RegressionData
    sizes = ("num_features", "num_context", "target_mean", "target_std")
    fixed = ("num_features",)
    earlier = MappingProxyType({"context_targets": False, "embedding": "linear"})
    encoding = ("target", "target_mean", "target_std", "columns")
    headline = "rmse"
    # On held-out training rows, the mean of two such networks has 0.86 of the RMSE of one on Yacht, and 0.95 on Boston
    # (all pairs of four seeds), that of four 0.78 and 0.93. With half the updates, two have an RMSE of 0.72 on Yacht
    # and of 0.358 on Energy, with these 0.70 and 0.350 (two seeds).
    recipe = Recipe(updates=2000, model=MappingProxyType({"ensemble": 2}))

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
        embedding: NumberEmbedding = "periodic",
        frequency_scale: float = 0.3,
        kl_weight: float = 0.01,
        ensemble: int | None = None,
        draws: int = 1,
        likelihood: Literal["gaussian"] | None = None,
        interval: float = 0.9,
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
        check_least(ensemble=(1 if ensemble is None else ensemble, 1), draws=(draws, 1))
        check_choices(likelihood=(likelihood, ("gaussian",)), embedding=(embedding, get_args(NumberEmbedding)))
        if not 0.0 < frequency_scale < math.inf:
            raise ValueError(f"frequency_scale must be positive and finite, got {frequency_scale}")
        self.query_fraction, self.intervals = query_fraction, Intervals(interval)
        self.save_hyperparameters(ignore=UNSAVED)
        self.unsaid = ("ensemble",) if ensemble is None else ()
        self.save_arguments("attention")
        self.attention = find_layer(attention)
        self._said_why = False
        # of the last validation: rows, answers, truth
        self._answers: list[tuple[Tensor, Answer, Tensor]] = []

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

    def build(self) -> RowTransformer | Ensemble:
        """Make the network, and room for its context."""
        sizes = self.hparams
        # a checkpoint says how many there are
        sizes["ensemble"] = self.members
        context = torch.zeros(sizes["num_context"], sizes["num_features"], device=self.data_device)
        self.register_buffer("context", context)
        self.register_buffer("context_target", context.new_zeros(len(context)) if sizes["context_targets"] else None)
        make = partial(
            RowTransformer,
            sizes["num_features"],
            width=sizes["width"],
            depth=sizes["depth"],
            num_heads=sizes["num_heads"],
            attention=self.attention,
            ffn_width=sizes["ffn_width"],
            dropout=sizes["dropout"],
            targets=sizes["context_targets"],
            embedding=sizes["embedding"],
            frequency_scale=sizes["frequency_scale"],
            outputs=2 if self.has_likelihood else 1,
        )
        net = make() if self.members == 1 else Ensemble(make, self.members)
        if sizes["draws"] > 1:
            # refuses what has no spectra to draw
            SpectralDraws(net, 1)
        return net

    def receive(self, data: RegressionData) -> None:
        """Take the context: features of training rows, and their targets. What was measured with another is void."""
        context, target = data.context, data.context_target
        self.context = torch.empty(context.shape, device=self.data_device).copy_(context)
        if self.hparams["context_targets"]:
            self.context_target = torch.empty(target.shape, device=self.data_device).copy_(target)
        self.intervals.forget()

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

    @property
    def members(self) -> int:
        """How many networks are trained together."""
        return self.hparams["ensemble"] or 1

    @property
    def has_likelihood(self) -> bool:
        """Whether answers have a standard deviation that was trained."""
        return self.hparams["likelihood"] is not None

    def forward(self, rows: Tensor) -> Tensor:
        """Predict the standardised target of standardised rows (r, num_features), from the context; returns (r,)."""
        return self.answer(rows).mean

    def answer(self, rows: Tensor) -> Answer:
        """Say what is believed of the standardised target of standardised rows (r, num_features), from the context.

        Shapes:
            mean and std (r,).
        """
        return self._believe(self._asked()(self.context, rows, self.context_target))

    def _asked(self) -> nn.Module:
        """The network as it is asked in evaluation."""
        draws = self.hparams["draws"]
        return self.net if draws == 1 else SpectralDraws(self.net, draws)

    def _believe(self, outputs: Tensor) -> Answer:
        """What its outputs say."""
        mixes = (self.hparams["draws"] > 1) + (self.members > 1)
        return believe(outputs, self.has_likelihood, mixes)

    def regulariser(self) -> Tensor:
        """Return the divergence of the attention's spectra from their priors, the mean over an ensemble."""
        return super().regulariser() / self.members

    def loss(self, batch: RowBatch) -> Loss:
        """Return the loss of the first rows of a batch, which is in random order, with the others as context."""
        asking = max(1, int(self.query_fraction * len(batch.target)))
        target, known = batch.target[:asking], batch.target[asking:] if self.hparams["context_targets"] else None
        outputs = self.net(batch.features[asking:], batch.features[:asking], known)
        mean, std = believe(outputs, self.has_likelihood)
        # of an ensemble, as often as there are members
        wanted = target.expand_as(mean)
        if std is None:
            return Loss(F.mse_loss(mean, wanted), len(target))
        # Each row weighs what its standard deviation is, a constant, as in beta-NLL with beta = 0.5 (Seitzer et al.
        # 2022): otherwise rows that are hard to predict are left to the standard deviation. On validation rows, RMSE
        # and CRPS fall with each of two seeds, the RMSE on Yacht from 1.40 to 0.64 and on Energy from 0.54 to 0.48. The
        # likelihood, by which the epoch is chosen, rises on Yacht from -2.78 to -2.31; on Energy it falls from -1.69 to
        # -1.80. By squared error, the RMSE is 0.60 and 0.42 (one seed).
        return Loss((std.detach() * gaussian_nll(mean, std, wanted)).mean(), len(target))

    def make_metrics(self) -> dict[str, Metric]:
        """Make the errors, on the standardised scale."""
        likelihood = {"loss": MeanMetric(), "crps": MeanMetric()}
        return {
            "loss": MeanSquaredError(),
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2Score(),
            "coverage": MeanMetric(),
            "width": MeanMetric(),
        } | (likelihood if self.has_likelihood else {})

    def measure(self, batch: RowBatch, metrics: MetricCollection, stage: Stage) -> None:
        """Measure the rows of a batch, and in a test their intervals."""
        target = batch.target
        # the share of one process may have none
        if not len(target):
            self.intervals.add(target)
            return
        answer = self.answer(batch.features)
        mean, scale = answer.mean, self._scale(answer)
        for name in ("rmse", "mae", "r2"):
            metrics[name].update(mean, target)
        if self.has_likelihood:
            metrics["loss"].update(gaussian_nll(mean, scale, target))
            metrics["crps"].update(gaussian_crps(mean, scale, target))
        else:
            metrics["loss"].update(mean, target)
        found = scores(mean, scale, target)
        if stage == "val":
            self.intervals.add(found)
            self._answers.append((batch.row, answer, target))
        elif math.isfinite(radius := self.intervals.radius):
            metrics["coverage"].update((found <= radius).to(found.dtype))
            metrics["width"].update(2.0 * radius * scale)

    def _scale(self, answer: Answer) -> Tensor:
        """In what errors are told: the standard deviations of answers, if those were trained, or 1."""
        return answer.std if self.has_likelihood and answer.std is not None else torch.ones_like(answer.mean)

    def on_validation_epoch_start(self) -> None:
        """Forget what was answered in the validation before."""
        self._answers = []
        self.intervals.begin()

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and keep the scores for intervals."""
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            self.intervals.end(self.trainer.world_size)
            self._say_why_no_interval()

    def on_fit_start(self) -> None:
        """Compile the network, if asked to, and check that there is something to answer from."""
        super().on_fit_start()
        self._check_context()

    def _check_encoding(self) -> None:
        super()._check_encoding()
        self._check_context()

    def _check_context(self) -> None:
        """Refuse to answer from nothing, as where loaders are given without a data module.

        Raises:
            ValueError: If the context is as it was built.
        """
        if self.data is not None or not self.is_built:
            return
        if not self.context.any() and (self.context_target is None or not self.context_target.any()):
            raise ValueError(
                "the context, of which rows answer, is empty: give the trainer a RegressionData; or, with loaders of "
                "your own, call model.configure_model() and put training rows into model.context and "
                "model.context_target"
            )

    def on_test_start(self) -> None:
        """Say once if there are no intervals to measure."""
        super().on_test_start()
        self._say_why_no_interval()

    def on_predict_start(self) -> None:
        """Say once if predictions have no intervals."""
        super().on_predict_start()
        self._say_why_no_interval()

    def _say_why_no_interval(self) -> None:
        if self.trainer.is_global_zero and not (self._said_why or math.isfinite(self.intervals.radius)):
            self._said_why = True
            log.warning("predictions have no interval: %s", self.intervals.why_none)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradient that of the mean over the samples of the update; scores are of the weights before it."""
        super().on_before_optimizer_step(optimizer)
        self.intervals.forget()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the scores of the last validation."""
        super().on_save_checkpoint(checkpoint)
        if self.intervals.scores is not None:
            checkpoint["calibration"] = self.intervals.scores
            checkpoint["calibration_draws"] = self.hparams["draws"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the scores of the checkpoint's validation, which earlier versions did not keep; of as many draws."""
        super().on_load_checkpoint(checkpoint)
        found, draws, here = (
            checkpoint.get("calibration"),
            checkpoint.get("calibration_draws", 1),
            self.hparams["draws"],
        )
        self.intervals.forget()
        if found is not None and draws != here:
            self.intervals.forget(f"the weights were validated with draws={draws}, not {here}; leave draws at {draws}")
        else:
            self.intervals.scores = found

    def summarise(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Return the errors in the target's own unit, R2 if there are two rows, and intervals if there are any."""

        def count(name: str, state: str) -> float:
            return float(self.trainer.strategy.reduce(getattr(metrics[name], state).clone(), reduce_op="sum"))

        intervals = count("width", "weight") > 0
        there = {"r2": count("r2", "total") >= 2, "coverage": intervals, "width": intervals}
        unit = self.hparams["target_std"]
        units = {"rmse": unit, "mae": unit, "crps": unit, "width": unit}
        found = {
            name: metric.compute() * units.get(name, 1.0) for name, metric in metrics.items() if there.get(name, True)
        }
        return found | ({"nll": found["loss"] + math.log(unit)} if self.has_likelihood else {})

    def predict_step(self, batch: RowBatch, batch_idx: int) -> Tensor:
        """Return predictions in the target's own unit, float64: a large mean must not cost digits.

        Shapes:
            the result (r,); (r, 2), mean and standard deviation, where that is known.
        """
        return self._in_units(self.answer(batch.features))

    def complete_predictions(self, predictions: Tensor) -> RowPredictions:
        """Give predictions their intervals.

        Args:
            predictions: What :meth:`predict_step` has returned, of one batch or several.
        """
        mean, std = (predictions, None) if predictions.dim() == 1 else predictions.unbind(-1)
        if math.isinf(radius := self.intervals.radius):
            return RowPredictions(mean, std)
        half = radius * (std if self.has_likelihood and std is not None else self.hparams["target_std"])
        return RowPredictions(mean, std, mean - half, mean + half)

    def pictures(self) -> Figures:
        """Return what can be drawn of the last validation; in distributed training, of this process's rows."""
        if self.data is None or not self._answers:
            return {}
        rows, answers, targets = zip(*self._answers, strict=True)
        means, stds = zip(*answers, strict=True)
        target, mean = torch.cat(targets), torch.cat(means)
        std = None if stds[0] is None else torch.cat(stds)
        found = self.complete_predictions(self._in_units(Answer(mean, std)))
        interval = None if found.lower is None or found.upper is None else (found.lower, found.upper)
        of_fit = torch.cat(rows).cpu(), found.mean, self._in_units(Answer(target))
        fit = partial(draw_fit, *of_fit, self.data.target_name, interval, self.intervals.level)
        calibration = {} if std is None else {"results/calibration": partial(draw_calibration, (target - mean) / std)}
        return {"results/fit": fit, **calibration}

    def describe_attention(self, layer: str) -> tuple[str, str]:
        """Say what attends and what is attended to: every row attends to the context alone."""
        return "rows, context first", "rows of the context"

    def run_example(self) -> Tensor:
        """Answer for a row of the context, which a checkpoint has."""
        return self(self.context[-1:])

    def export_program(self, data: RegressionData) -> Program:
        """Return what predicts in the target's own unit, as far as it is known with how sure it is.

        The context is a part of it.
        """
        width, target = self.hparams["num_features"], f"{data.target_name!r} of each row"
        ends = f"of an interval that holds the target with a probability of {self.intervals.level}"
        meaning = {
            "features": "the rows to predict for, encoded",
            "prediction": f"{target}, in the unit of the training table",
            "std": "its standard deviation",
            "lower": f"the lower end {ends}",
            "upper": f"the upper end {ends}",
        }
        predict = ContextRegressor(
            self._asked(),
            self.context,
            self.context_target,
            self._believe,
            mean=self.hparams["target_mean"],
            std=self.hparams["target_std"],
            radius=None if math.isinf(self.intervals.radius) else self.intervals.radius,
            widens=self.has_likelihood,
        )
        return Program(
            predict,
            example={"features": torch.linspace(-1.0, 1.0, 11 * width).view(11, width)},
            axes={name: {0: "rows"} for name in meaning},
            meaning=meaning,
            encoding=data.learned.describe(),
        )

    def _in_units(self, answer: Answer) -> Tensor:
        """Means in the target's own unit, float64 (r,); (r, 2) with standard deviations, where they are known."""
        unit = self.hparams["target_std"]
        mean = self.hparams["target_mean"] + unit * answer.mean.cpu().double()
        return mean if answer.std is None else torch.stack([mean, unit * answer.std.cpu().double()], -1)


def _columns(columns: list[tuple[str, Any]]) -> str:
    return quoted([name for name, _ in columns]) or "unknown"
