"""The life of a task: built when sizes are known, trained, measured, saved, and adapted to other data on purpose.

Whatever number of processes and batches an update is made of, its loss is the mean over all of their samples, and its
noise is a function of the seed and the place in the training. So a training that was interrupted goes on as if it had
not been, and several processes make the updates of one that accumulates as many batches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection

from ika_lightning.attention import attention_kl
from ika_lightning.data.base import DataModule
from ika_lightning.data.messages import say
from ika_lightning.internals import trainer_of
from ika_lightning.models import compile_layers
from ika_lightning.protocols import HasFingerprints
from ika_lightning.tasks.layers import name_layer
from ika_lightning.tasks.mean import WeightedMean
from ika_lightning.tasks.recipe import Recipe
from ika_lightning.tasks.schedule import WarmupCosine
from ika_lightning.tasks.start import Start, read_checkpoint_file
from ika_lightning.trust import FromCheckpoint

__all__ = ["MONITOR", "UNSAVED", "Loss", "Stage", "Task"]

#: What tells how good a model is, the less the better: checkpoints, early stopping and schedulers watch it.
MONITOR = "val/loss"

#: Arguments of a task that are no hyper-parameters of the model: what trains it, and what it started from.
UNSAVED = ("optimizer", "scheduler", "init_from")

Data = TypeVar("Data", bound=DataModule)
Stage = Literal["val", "test"]


class Loss(NamedTuple):
    """The loss of a training batch, without the regulariser.

    Args:
        mean: The mean over its samples. The share of one process may have none; it has to be finite all the same.
        samples: How many these are, or what they weigh together.
    """

    mean: Tensor
    samples: Tensor | int


class Task(FromCheckpoint, LightningModule, ABC, Generic[Data]):
    """Base of the tasks.

    A subclass says what only its data knows (:meth:`read_sizes`), its network (:meth:`build`), its loss, its metrics
    and how they are measured, and its predictions. Everything else is here.

    Dropout and spectra draw from PyTorch's generator. It is seeded before each training batch from the seed that it had
    when the training began, the epoch, and the number of the batch among those of all processes: rank r's batch b of w
    processes is batch b w + r of one. So processes draw different noise, the same that one process would draw that
    accumulates as many batches, and the noise of a step doesn't depend on what was drawn before.

    A model that is trained, or that is given ``init_from``, and is fitted on other data adapts to it (:meth:`adapt`),
    says so in a line, or refuses. To be evaluated on other data, it has to be loaded by the trainer together with them.

    Args:
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each ``scheduler_interval``; None keeps the learning rate.
        kl_weight: Weight of the attention's regulariser in the training loss.
        compile: Compile the network's layers with ``torch.compile`` when training starts. The keys of the state dict
            stay what they are. Testing and predicting are not compiled.
        init_from: A checkpoint whose weights a new training starts from.

    Attributes:
        net: The network, once sizes are known.
        data_class: The data module that the task learns from.
        sizes: Names of the hyper-parameters that only the data knows; a checkpoint has them.
        optional_sizes: Those of them that may be None all the same.
        fixed: Those that have to be the data's own for a training to go on.
        earlier: What other hyper-parameters were in checkpoints of earlier versions, which do not name them.
        unsaid: Those that nobody has said: they are what they are in a checkpoint that is loaded, or is ``init_from``.
        encoding: Names of what the data module has learned on training rows and the weights depend on.
        headline: The measure that progress bars show.
        recipe: How the command line trains where neither ``max_epochs`` nor ``max_steps`` is given; None is 200 epochs.
        scheduler_interval: ``"epoch"``, or ``"step"`` for each update.
        lr: The learning rate that a ``LearningRateFinder`` has found, in place of the optimizer's own; else None.

    Raises:
        ValueError: If kl_weight is negative.

    Example:
        >>> from ika_lightning.tasks import Regression
        >>> model = Regression(depth=1)
        >>> isinstance(model, Task), model.headline, model.sizes
        (True, 'rmse', ('num_features', 'num_context', 'target_mean', 'target_std'))
    """

    net: nn.Module
    data_class: type[Data]
    sizes: tuple[str, ...]
    optional_sizes: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    earlier: Mapping[str, Any] = MappingProxyType({})
    unsaid: tuple[str, ...] = ()
    encoding: tuple[str, ...]
    headline: str = "loss"
    recipe: ClassVar[Recipe | None] = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"

    def __init__(
        self,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        kl_weight: float = 0.0,
        compile: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        if not kl_weight >= 0.0:
            raise ValueError(f"kl_weight must be at least 0, got {kl_weight}")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.kl_weight = kl_weight
        self.compiles = compile
        self.init_from = init_from
        self.lr: float | None = None
        with self.data_device:
            self.train_loss, self.train_kl = WeightedMean(), WeightedMean()
        # what the data had learned that the network was trained on; empty if that is not known
        self._encoding: dict[str, Any] = {}
        # that of the noise, once a training has begun
        self._seed: int | None = None
        # samples of the batch, on average over the processes
        self._weight: Tensor = torch.zeros((), device=self.data_device)
        # and of the batches so far of the update that is being made
        self._update_weight: Tensor | int = 0

    # --- What a task says ---------------------------------------------------------------------------------------------

    @abstractmethod
    def read_sizes(self, data: Data) -> dict[str, Any] | None:
        """Return what only the data knows, by the names of :attr:`sizes`; None if it has not learned it either.

        Args:
            data: The data, after its ``setup``.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the network that the hyper-parameters describe, sizes included."""

    @abstractmethod
    def make_metrics(self) -> dict[str, Metric]:
        """Make what is measured in validation and testing, by name."""

    @abstractmethod
    def loss(self, batch: Any) -> Loss:
        """Return the loss of a training batch."""

    @abstractmethod
    def measure(self, batch: Any, metrics: MetricCollection, stage: Stage) -> None:
        """Update the metrics with a batch; the share of one process may have no samples.

        Args:
            batch: The batch.
            metrics: Those of :meth:`make_metrics`.
            stage: Whether this is validation or a test.
        """

    def regulariser(self) -> Tensor:
        """Return the divergence of the attention's spectra from their priors, of the last forward."""
        return attention_kl(self)

    def learned_part(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the part of the state of a data module that has the names of :attr:`encoding`."""
        return state

    def summarise(self, metrics: MetricCollection) -> dict[str, Tensor]:
        """Return what was measured: numbers are logged, everything is shown."""
        return {name: metric.compute() for name, metric in metrics.items()}

    def show(self, stage: Stage, measured: Mapping[str, Tensor]) -> None:
        """Show what was measured besides numbers, at the end of a validation or test."""

    def receive(self, data: Data) -> None:
        """Take from the data what the network answers from, besides weights."""

    def expect(self, checkpoint: Mapping[str, Any], data: Data) -> None:
        """Prepare to be loaded by a trainer, which looks at the data first: nothing is read that the checkpoint has.

        What a training once started from may be gone.

        Args:
            checkpoint: What is in the file.
            data: The data, before its ``setup``.
        """
        self.init_from = None

    def adapt(self, start: Start, data: Data) -> tuple[dict[str, Tensor], str]:
        """Make the weights of a network that has learned other data fit this task's network for new data.

        Args:
            start: That network.
            data: The new data.

        Returns:
            The weights, without those that start anew; and what was done about it, for a message.

        Raises:
            ValueError: If that makes no sense.
        """
        return dict(start.weights), ""

    # --- Building and loading -----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Say why there is no network, where there is none."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name != "net":
                raise
            kind = type(self).__name__
            raise AttributeError(f"{kind} has no network yet: data or a checkpoint says how large it is") from None

    @property
    def is_built(self) -> bool:
        """Whether there is a network."""
        return any(name == "net" for name, _ in self.named_children())

    @property
    def data(self) -> Data | None:
        """The trainer's data module, or None where there is no trainer.

        Raises:
            ValueError: If it is of another kind.
        """
        trainer = trainer_of(self)
        data = None if trainer is None else trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and not isinstance(data, self.data_class):
            name, wanted = type(self).__name__, self.data_class.__name__
            raise ValueError(f"{name} needs {wanted}, got {type(data).__name__}; give --data {wanted}")
        return data

    def setup(self, stage: str) -> None:
        """Note the seed, and check that all processes have read the same data, of which each takes its share.

        Raises:
            ValueError: If the processes have read different data; in every process.
        """
        if stage == "fit":
            # a training that goes on takes that of its checkpoint
            self._seed = torch.initial_seed()
        if self.trainer.world_size == 1:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        here = dict(data.fingerprints) if isinstance(data, HasFingerprints) else {}
        first = self.trainer.strategy.broadcast(here)
        differing = sorted(part for part in here.keys() | first.keys() if here.get(part) != first.get(part))
        same = self.trainer.strategy.reduce_boolean_decision(not differing, all=True)
        if not same:
            what = f"; here, {', '.join(differing)} differs from process 0" if differing else ""
            raise ValueError(
                f"the processes have read different data (process {self.global_rank} of {self.trainer.world_size}"
                f"{what}); give all machines the same files"
            )

    def configure_model(self) -> None:
        """Build the network for the data, from what it is to start from; where data knows no sizes, a checkpoint does.

        Raises:
            ValueError: If a network that has learned other data cannot be adapted to this.
        """
        data = self.data
        trains = data is not None and self.trainer.state.fn == TrainerFn.FITTING
        sizes = self.read_sizes(data) if data is not None and (trains or not self.is_built) else None
        if data is not None and sizes is not None:
            self._build_for(data, sizes, self._find_start(data) if trains else None)
        elif self.is_built:
            self._renew_metrics()
        elif not self._missing_sizes(self.hparams):
            self._build()

    @property
    def data_device(self) -> torch.device:
        """The device of metrics and of what the network answers from, its own unless that is ``meta``, then the CPU.

        Lightning draws parameters that were built without data; what was measured or read it could not.
        """
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def _build_for(self, data: Data, sizes: Mapping[str, Any], start: Start | None) -> None:
        if start is not None and torch.get_default_device().type == "meta":
            raise ValueError(
                f"{start.source} has weights to start from, but the strategy builds the network without data and draws "
                "its parameters; give another strategy, or start anew"
            )
        self.hparams.update(sizes)
        if start is None and self.is_built:
            self._renew_metrics()
        else:
            self._build()
        if start is not None:
            self._start_from(start, data)
        self._encoding = self._encoding_of(data)
        self.receive(data)

    def _build(self) -> None:
        self.net = self.build()
        self._renew_metrics()

    def _renew_metrics(self) -> None:
        with self.data_device:
            self.val_metrics, self.test_metrics = (
                MetricCollection(self.make_metrics(), compute_groups=False)  # type: ignore[arg-type]
                for _ in range(2)
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build the network as the checkpoint's was, and take the seed of its noise.

        Raises:
            ValueError: If it is the checkpoint of another task, or was trained on data of other sizes than a training
                goes on with.
        """
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY)
        sizes = self._sizes_in(saved, "the checkpoint")
        here = self.read_sizes(self.data) if self.data is not None and self.fixed else None
        for name in self.fixed if here else ():
            if here is not None and here[name] != sizes[name]:
                raise ValueError(
                    f"the checkpoint was trained with {name}={sizes[name]}, but the data has {name}={here[name]}; give "
                    "the data that it was trained on, or start a new training from its weights with init_from"
                )
        self._seed = checkpoint.get("noise_seed", self._seed)
        self._encoding = self._encoding_in(checkpoint)
        sizes |= {name: value if saved is None else saved.get(name, value) for name, value in self.earlier.items()}
        sizes |= {name: saved[name] for name in self.unsaid if saved is not None and name in saved}
        other = any(self.hparams[name] != size for name, size in sizes.items())
        self.hparams.update(sizes)
        trainer = trainer_of(self)
        if other and self.is_built and trainer is not None and trainer.strategy.restore_checkpoint_after_setup:
            raise ValueError(
                "the checkpoint was trained on data of other sizes, and this strategy has cut the network into shares "
                "already; give the data that it was trained on, or one process"
            )
        if trainer is None:
            if other or not self.is_built:
                self._build()
        elif other or not self.is_built:
            # as Lightning calls configure_model, so that parameters have the trainer's precision and device
            with trainer.strategy.tensor_init_context(), trainer.precision_plugin.module_init_context():
                self._build()
        self._check_shapes(checkpoint)

    def _check_shapes(self, checkpoint: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of another network in one line, before PyTorch lists all that does not fit.

        Raises:
            ValueError: If a parameter has another shape there.
        """
        there, own = (
            {key: tuple(value.shape) for key, value in state.items() if key.startswith("net.")}
            for state in (checkpoint.get("state_dict", {}), self.state_dict())
        )
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY) or {}
        differing = next((key for key in sorted(there.keys() & own.keys()) if there[key] != own[key]), None)
        # names alone may be those of an earlier version, which modules read
        if differing is None and not (there.keys() != own.keys() and self._has_other_classes(saved)):
            return
        what = self._different_options(saved) or f"{differing} of another shape"
        raise ValueError(
            f"the checkpoint has another network, with {what}; give the model the options that it was trained with, or "
            "leave them out"
        )

    def _has_other_classes(self, saved: Mapping[str, Any]) -> bool:
        pairs = ((value, saved.get(name)) for name, value in self.hparams.items())
        return any(
            _class_name(here) != _class_name(there)
            for here, there in pairs
            if isinstance(here, Mapping) and isinstance(there, Mapping)
        )

    def _different_options(self, saved: Mapping[str, Any]) -> str:
        """Name the hyper-parameters that are others than those of a checkpoint."""
        found = (
            _difference(name, saved[name], value)
            for name, value in self.hparams.items()
            if name in saved and name not in self.sizes and saved[name] != value
        )
        return ", ".join(found)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the noise."""
        if self._seed is not None:
            checkpoint["noise_seed"] = self._seed

    def save_arguments(self, *layers: str) -> None:
        """Turn arguments that Lightning has saved into primitives, so that checkpoints load with ``weights_only=True``.

        From the command line they are primitives already. In Python, a class or a ``functools.partial`` of one is
        saved by its name and arguments.

        Args:
            *layers: Arguments that hold such a class.
        """
        for name in layers:
            if not isinstance(self.hparams[name], Mapping):
                self.hparams[name] = name_layer(self.hparams[name])

    def _missing_sizes(self, hparams: Mapping[str, Any]) -> list[str]:
        return [name for name in self.sizes if name not in self.optional_sizes and hparams.get(name) is None]

    def _sizes_in(self, saved: Any, source: str) -> dict[str, Any]:
        missing = self._missing_sizes(saved if isinstance(saved, Mapping) else {})
        if missing:
            name = type(self).__name__
            raise ValueError(f"{source} is not one of {name}: it does not say {', '.join(missing)}")
        return {name: saved.get(name) for name in self.sizes}

    # --- Other data ---------------------------------------------------------------------------------------------------

    def _find_start(self, data: Data) -> Start | None:
        """What the network for the data is to start from: a file, itself if it has learned other data, or nothing."""
        if self.init_from is not None:
            path, self.init_from = self.init_from, None
            checkpoint = read_checkpoint_file(path)
            saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY)
            self._sizes_in(saved, f"init_from: {path}")
            assert saved is not None
            self.hparams.update({name: saved[name] for name in self.unsaid if name in saved})
            state = checkpoint["state_dict"].items()
            weights = {key.removeprefix("net."): value for key, value in state if key.startswith("net.")}
            return Start(path, weights, {**self.earlier, **saved}, self._encoding_in(checkpoint))
        if not self.is_built or self._encoding == self._encoding_of(data):
            return None
        weights = {key: value.detach().clone() for key, value in self.net.state_dict().items()}
        return Start("the model", weights, dict(self.hparams), self._encoding)

    def _start_from(self, start: Start, data: Data) -> None:
        """Give the network, which was built for the data, the weights that it starts from."""
        weights, note = dict(start.weights), ""
        if start.encoding != self._encoding_of(data):
            weights, note = self.adapt(start, data)
        own = self.net.state_dict()
        anew = start.weights.keys() - weights.keys()
        shapes, there = ({key: tuple(value.shape) for key, value in state.items()} for state in (own, weights))
        for key in sorted((shapes.keys() | there.keys()) - anew):
            if shapes.get(key) != there.get(key):
                what = self._different_options(start.hparams)
                what = what or f"{key} of shape {there.get(key)} (here {shapes.get(key)})"
                raise ValueError(
                    f"{start.source} has another network, with {what}; give the model the options that it was trained "
                    "with"
                )
        self.net.load_state_dict({**own, **weights})
        say(f"starting from the weights of {start.source}{note and f': {note}'}")

    def _encoding_of(self, data: Data) -> dict[str, Any]:
        return self._select_encoding(data.state_dict())

    def _encoding_in(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        # by this name Lightning keeps the state of a data module
        state = checkpoint.get((self.data_class if self.data is None else type(self.data)).__qualname__)
        return self._select_encoding(state) if isinstance(state, Mapping) else {}

    def _select_encoding(self, state: Mapping[str, Any]) -> dict[str, Any]:
        known = self.learned_part(state) if state else {}
        return {name: known.get(name) for name in self.encoding} if known else {}

    def _check_encoding(self) -> None:
        """Refuse to be evaluated on data that was encoded by what other training rows have taught.

        Raises:
            ValueError: If it was.
        """
        data = self.data
        here = {} if data is None else self._encoding_of(data)
        if here and self._encoding and here != self._encoding:
            other = ", ".join(name for name in self.encoding if here.get(name) != self._encoding.get(name))
            raise ValueError(
                f"the model was trained on data with another {other} than this {type(data).__name__} has learned; give "
                "the trainer the model's checkpoint (ckpt_path), which brings its own"
            )

    def on_validation_start(self) -> None:
        """Check that the data is encoded as the model has learned it."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._check_encoding()

    def on_test_start(self) -> None:
        """Check that the data is encoded as the model has learned it."""
        self._check_encoding()

    def on_predict_start(self) -> None:
        """Check that the data is encoded as the model has learned it."""
        self._check_encoding()

    # --- Training -----------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Compile the network, if asked to, and take the learning rate that was found, if one was looked for."""
        if self.lr is not None:
            # for the scheduler to start from it as well
            self.trainer.strategy.setup_optimizers(self.trainer)
        if self.compiles:
            compile_layers(self.net)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the noise of the batch."""
        number = batch_idx * self.trainer.world_size + self.global_rank
        place = (self._seed or 0, self.current_epoch, number)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch plus the weighted divergence of the attention's spectra from their priors.

        The average over processes is that of their batches together, each weighted by its samples. The divergence is
        logged unweighted, as ``train/kl``.
        """
        loss, samples = self.loss(batch)
        kl = self.regulariser()
        for name, metric, value in (("loss", self.train_loss, loss), ("kl", self.train_kl, kl)):
            metric.update(value.detach(), weight=samples)
            # metrics weigh batches themselves
            self.log(f"train/{name}", metric, on_step=False, on_epoch=True, batch_size=1)
        count = torch.as_tensor(samples, dtype=torch.promote_types(torch.float32, loss.dtype), device=self.device)
        trainer = trainer_of(self)
        # over the processes
        self._weight = count if trainer is None else trainer.strategy.reduce(count.clone())
        # all shares of a small batch may be empty
        share = count / self._weight.clamp_min(torch.finfo(count.dtype).tiny)
        return share * (loss + self.kl_weight * kl)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Add to the gradient, the batch weighted by its samples."""
        super().backward(loss * self._weight, *args, **kwargs)
        self._update_weight = self._update_weight + self._weight

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make the gradient that of the mean over the samples of the update."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        # Lightning has divided by the number of batches
        torch._foreach_mul_(gradients, self.trainer.accumulate_grad_batches / self._update_weight)
        self._update_weight = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the scheduler; one that waits for a plateau watches ``MONITOR``."""
        optimizer = self.make_optimizer(**({} if self.lr is None else {"lr": self.lr}))
        if self.scheduler is None:
            return optimizer
        rates = {float(group["lr"]) for group in optimizer.param_groups}
        scheduler = self.scheduler(optimizer)
        if isinstance(scheduler, OneCycleLR | CyclicLR) and len(rates) > 1:
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} has one highest learning rate for all parameters, but they "
                f"have {', '.join(f'{rate:.3g}' for rate in sorted(rates))}; take another, such as WarmupCosine"
            )
        if self.lr is not None and isinstance(scheduler, OneCycleLR):
            # whose highest rate is an argument of its own
            scheduler = self.scheduler(optimizer, max_lr=self.lr)  # type: ignore[call-arg]
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": MONITOR}}
        interval = "step" if isinstance(scheduler, WarmupCosine) else self.scheduler_interval
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def make_optimizer(self, **options: Any) -> Optimizer:
        """Build the optimizer of all parameters.

        Args:
            **options: A learning rate in the place of its own.
        """
        return self.optimizer(self.parameters(), **options)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, and tell one that ends with the training how far it is."""
        if isinstance(scheduler, WarmupCosine):
            scheduler.advance(self.progress)
        else:
            super().lr_scheduler_step(scheduler, metric)

    @property
    def progress(self) -> float:
        """How much of the training is over, from 0 to 1, by its updates or its time, whichever ends first.

        0 all along if there is no end to either.
        """
        updates = self.trainer.global_step / self.trainer.estimated_stepping_batches
        timer = next((each for each in self.trainer.callbacks if isinstance(each, Timer)), None)  # type: ignore[attr-defined]
        left = None if timer is None else timer.time_remaining()
        if timer is None or left is None:
            return updates
        over = timer.time_elapsed()
        # processes that go by clocks of their own would part
        return max(updates, float(self.trainer.strategy.broadcast(over / (over + left))))

    # --- Measuring ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure a batch of validation data."""
        self.measure(batch, self.val_metrics, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure a batch of test data."""
        self.measure(batch, self.test_metrics, "test")

    def on_validation_epoch_end(self) -> None:
        """Log what was measured, and show it."""
        self._log_measures("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Log what was measured, and show it."""
        self._log_measures("test", self.test_metrics)

    def _log_measures(self, stage: Stage, metrics: MetricCollection) -> None:
        measured = self.summarise(metrics)
        metrics.reset()
        for name, value in measured.items():
            if value.numel() == 1:
                self.log(f"{stage}/{name}", value, prog_bar=name == self.headline)
        self.show(stage, measured)


def _class_name(named: Mapping[str, Any]) -> str:
    return str(named.get("class_path")).rpartition(".")[2]


def _difference(name: str, there: Any, here: Any) -> str:
    """Say how a hyper-parameter differs; of a class with arguments, which of both."""
    if not (isinstance(there, Mapping) and isinstance(here, Mapping)):
        return f"{name}={there!r} (here {here!r})"
    classes = [_class_name(each) for each in (there, here)]
    if classes[0] != classes[1]:
        return f"{name}={classes[0]} (here {classes[1]})"
    of_there, of_here = (each.get("init_args") or {} for each in (there, here))
    options = (option for option in {**of_there, **of_here} if of_there.get(option) != of_here.get(option))
    return ", ".join(_difference(f"{name}.{each}", of_there.get(each), of_here.get(each)) for each in options)
