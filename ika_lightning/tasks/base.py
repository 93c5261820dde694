"""What the four tasks share: an attention that checkpoints can name, an optimizer, and the loss of an update.

Whatever number of processes and batches an update is made of, its loss is the mean over all of their samples, and its
noise is a function of the seed and the place in the training. So a training that was interrupted goes on as if it had
not been.
"""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torchmetrics import MeanMetric

from ika_lightning.attention import attention_kl
from ika_lightning.trust import FromCheckpoint

Data = TypeVar("Data", bound=LightningDataModule)


class Task(FromCheckpoint, LightningModule, ABC):
    """Base of the tasks.

    A subclass builds its network in ``configure_model``, and returns :meth:`objective` of its loss from
    ``training_step``.

    Dropout and spectra draw from PyTorch's generator. It is seeded before each training step from the seed that it had
    when the training began, the epoch, the batch and the process: processes draw different noise, and the noise of a
    step doesn't depend on what was drawn before.

    Args:
        optimizer: Called with the parameters.
        scheduler: Called with the optimizer and stepped each ``scheduler_interval``; None keeps the learning rate.
        kl_weight: Weight of the attention's regulariser in the training loss.
        compile: Compile the network with ``torch.compile`` when training starts. The keys of the state dict stay what
            they are. Testing and predicting are not compiled.

    Attributes:
        scheduler_interval: ``"epoch"``, or ``"step"`` for each update.
        lr: The learning rate that a ``LearningRateFinder`` has found, in place of the optimizer's own; else None.

    Raises:
        ValueError: If kl_weight is negative.
    """

    net: nn.Module | None
    scheduler_interval: Literal["epoch", "step"] = "epoch"

    def __init__(
        self,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        kl_weight: float = 0.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not kl_weight >= 0.0:
            raise ValueError(f"kl_weight must be at least 0, got {kl_weight}")
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.kl_weight = kl_weight
        self.compiles = compile
        self.lr: float | None = None
        self.net = None
        self.train_kl = MeanMetric()
        self._seed = 0
        self._weight: Tensor | int = 0  # samples of the batch, on average over the processes
        self._update_weight: Tensor | int = 0  # and of the batches so far of the update that is being made

    @abstractmethod
    def configure_model(self) -> None:
        """Build ``self.net``, once the data module has said how wide its input is."""

    def find_data(self, kind: type[Data]) -> Data | None:
        """Return the trainer's data module, or None where there is no trainer.

        Raises:
            ValueError: If it is of another kind.
        """
        data = None if self._trainer is None else self.trainer.datamodule  # type: ignore[attr-defined]
        if data is not None and not isinstance(data, kind):
            name, wanted = type(self).__name__, kind.__name__
            raise ValueError(f"{name} needs {wanted}, got {type(data).__name__}; give --data {wanted}")
        return data

    def setup(self, stage: str) -> None:
        """Note the seed, and check that all processes have read the same data, of which each takes its share.

        Raises:
            ValueError: If the processes have read different data; in every process.
        """
        self._seed = torch.initial_seed()  # a training that goes on takes that of its checkpoint
        if self.trainer.world_size == 1:
            return
        here = getattr(self.trainer.datamodule, "fingerprints", {})  # type: ignore[attr-defined]
        first = self.trainer.strategy.broadcast(here)
        differing = sorted(part for part in here.keys() | first.keys() if here.get(part) != first.get(part))
        same = self.trainer.strategy.reduce_boolean_decision(not differing, all=True)
        if not same:
            what = f"; here, {', '.join(differing)} differs from process 0" if differing else ""
            raise ValueError(
                f"the processes have read different data (process {self.global_rank} of {self.trainer.world_size}"
                f"{what}); give all machines the same files"
            )

    def objective(self, loss: Tensor, samples: Tensor | int, inputs: int | None = None) -> Tensor:
        """Return the loss of a batch plus the weighted divergence of the attention's spectra from their priors.

        The average over processes is that of the joint batch, whatever its shares. The divergence is logged unweighted,
        as ``train/kl``.

        Args:
            loss: Mean over the samples of the batch.
            samples: How many these are. The share of one process may have none; its loss has to be finite.
            inputs: How many inputs the divergence is the mean over, if they are not the samples.
        """
        counted = samples if inputs is None else inputs
        kl = attention_kl(self)
        self.train_kl.update(kl.detach(), weight=counted)
        self.log("train/kl", self.train_kl, on_step=False, on_epoch=True)
        dtype = torch.promote_types(torch.float32, loss.dtype)
        counts = torch.stack([torch.as_tensor(n, dtype=dtype, device=self.device) for n in (samples, counted)])
        means = counts if self._trainer is None else self.trainer.strategy.reduce(counts.clone())  # over the processes
        self._weight = means[0]
        share = counts / means
        return share[0] * loss + share[1] * (self.kl_weight * kl)

    def on_fit_start(self) -> None:
        """Compile the network, if asked to, and take the learning rate that was found, if one was looked for."""
        if self.lr is not None:
            self.trainer.strategy.setup_optimizers(self.trainer)  # for the scheduler to start from it as well
        if self.compiles:
            assert self.net is not None
            self.net.compile()  # in place: torch.compile(net) would rename the keys of the state dict

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the noise of the step."""
        place = (self._seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the noise."""
        checkpoint["noise_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed of the noise; a subclass builds its network as the checkpoint's was."""
        self._seed = checkpoint.get("noise_seed", self._seed)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the scheduler; one that waits for a plateau watches ``val/loss``."""
        optimizer = self.optimizer(self.parameters(), **({} if self.lr is None else {"lr": self.lr}))
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        if self.lr is not None and isinstance(scheduler, OneCycleLR):  # whose highest rate is an argument of its own
            scheduler = self.scheduler(optimizer, max_lr=self.lr)  # type: ignore[call-arg]
        if isinstance(scheduler, ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.scheduler_interval}}

    def save_hyperparameters_with_attention(self, *names: str) -> None:
        """Save the subclass's arguments as primitives, so that checkpoints load with ``weights_only=True``.

        From the command line they are primitives already. In Python, a class or a ``functools.partial`` of one is
        saved by its name and arguments.

        Args:
            *names: Arguments that hold such a class.
        """
        frame = sys._getframe(1)
        self.save_hyperparameters(ignore=["optimizer", "scheduler"], frame=frame)
        for name in names:
            if not isinstance(self.hparams[name], Mapping):
                self.hparams[name] = name_layer(self.hparams[name])


def name_layer(factory: Any) -> dict[str, Any]:
    """Describe a layer class, or a ``functools.partial`` of one, by primitives.

    Raises:
        ValueError: If it is something else, a lambda for instance, which no checkpoint could name.

    Example:
        >>> from ika_lightning.attention import RBF
        >>> name_layer(functools.partial(RBF, p=1.5))
        {'class_path': 'ika_lightning.attention.multihead.RBF', 'init_args': {'p': 1.5}}
    """
    parts, arguments = [factory], {}
    if isinstance(factory, functools.partial):
        # jsonargparse wraps a class in functions of its own, and passes it to them
        parts, arguments = [factory.func, *factory.args], factory.keywords
    layers = [part for part in parts if isinstance(part, type)]
    if len(layers) != 1 or not all(map(callable, parts)):
        raise ValueError(
            "an attention must be a class, or a functools.partial of one with keyword arguments, so that a checkpoint "
            f"can name it; got {factory!r}"
        )
    return {
        "class_path": f"{layers[0].__module__}.{layers[0].__qualname__}",
        "init_args": {key: name_layer(value) if callable(value) else value for key, value in arguments.items()},
    }


def find_layer(named: Any) -> Callable[..., Any]:
    """Return what :func:`name_layer` described; anything callable is returned as it is.

    Classes are looked up among those that are imported already: a checkpoint can't make code run.

    Raises:
        ValueError: If the class is not imported, or no module of PyTorch.

    Example:
        >>> find_layer({"class_path": "ika_lightning.attention.RBF", "init_args": {"p": 1.5}})(8, 2).core.p
        1.5
    """
    if callable(named):
        return named
    path = named["class_path"]
    module, _, name = path.rpartition(".")
    layer = getattr(sys.modules.get(module), name, None)
    if not (isinstance(layer, type) and issubclass(layer, nn.Module)):
        raise ValueError(f"{path} is no layer that is imported; import the module that defines it first")
    arguments = named.get("init_args", {})
    return functools.partial(
        layer,
        **{k: find_layer(v) if isinstance(v, Mapping) and "class_path" in v else v for k, v in arguments.items()},
    )
