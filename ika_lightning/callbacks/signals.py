"""Figures of the training itself: regularisers, gradients, learning rate, speed and memory."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ika_lightning.attention.core import Core
from ika_lightning.pictures.parts import parts
from ika_lightning.pictures.record import attention_layers
from ika_lightning.protocols import CountsUnits

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


log = logging.getLogger(__name__)


class TrainingSignals(Callback):
    """Logs what tells how a training goes, every few steps, to whatever loggers there are.

    ===========================  =====================================================================================
    ``kl/<layer>``               the divergence of a layer's spectrum from its prior, of the last step
    ``precision/<layer>``        the s of the exact part of its kernel, where 1 is dot-product attention's
    ``share/<layer>``            the share a of the sampled part
    ``p/<layer>``                the exponent of its magnitude, and
    ``magnitude_scale/<layer>``  the scale of it, if they are learned
    ``gradient/norm``            the L2 norm of all gradients, before they are clipped
    ``learning_rate``            of the optimizer's first group; ``learning_rate/<group>`` if there are several
    ``speed/<unit>_per_second``  over all processes, without the time of validation
    ``memory/process_gib``       the most that this process has held at a time; not on Windows
    ``memory/cuda_gib``          the most that was allocated on its GPU at a time
    ===========================  =====================================================================================

    Speed and memory are left out of the file of a :class:`~lightning.pytorch.loggers.CSVLogger`: no seed repeats them,
    and two runs with the same seed are to write the same file.

    Batches are counted in samples, unless they are :class:`~ika_lightning.protocols.CountsUnits`.

    Args:
        every_n_steps: After how many steps to log.

    Raises:
        ValueError: If every_n_steps is below 1.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[TrainingSignals()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.seconds = 0.0
        self._layers: dict[str, Core] = {}
        self._logged = -1
        self._on = False
        self._norm: Tensor | None = None
        self._counts: dict[str, Any] = {}
        self._trained = 0.0  # seconds of training since the last figures
        self._since = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = {name: core for name, (_, core) in attention_layers(pl_module).items()}
        self._since = time.perf_counter()
        self._on = trainer.is_global_zero and bool(trainer.loggers)
        if self._on and pl_module.automatic_optimization:
            self._watch_gradients(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module).pop("configure_gradient_clipping", None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        vars(pl_module).pop("configure_gradient_clipping", None)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained += time.perf_counter() - self._since

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._on:
            return
        now = time.perf_counter()
        for unit, count in count_units(batch).items():
            self._counts[unit] = self._counts.get(unit, 0) + count
        step = trainer.global_step
        if step % self.every_n_steps or step == self._logged:
            self.seconds += time.perf_counter() - now
            return
        self._logged = step
        self._trained += now - self._since
        repeatable, load = self._measure(trainer), self._measure_load(trainer)
        for logger in trainer.loggers:
            # Lightning numbers updates from 0, and a run that goes on keeps what has a number below that of its next
            logger.log_metrics(repeatable if isinstance(logger, CSVLogger) else repeatable | load, step=step - 1)
        self._counts, self._trained, self._norm = {}, 0.0, None
        self._since = time.perf_counter()
        self.seconds += self._since - now

    def _measure(self, trainer: Trainer) -> dict[str, float]:
        values: dict[str, float] = {}
        for layer, core in list(self._layers.items()):
            try:
                values |= learned(layer, core)
            # no training stops for a layer of somebody else's
            except Exception as error:
                del self._layers[layer]
                log.warning("no figures of %s: %s: %s", layer or "the layer", type(error).__name__, error)
        if self._norm is not None:
            values["gradient/norm"] = self._norm.item()
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        for number, group in enumerate(groups):
            values["learning_rate" if len(groups) == 1 else f"learning_rate/{number}"] = float(group["lr"])
        return values

    def _measure_load(self, trainer: Trainer) -> dict[str, float]:
        values = {
            f"speed/{unit}_per_second": float(count) * trainer.world_size / max(self._trained, 1e-9)
            for unit, count in self._counts.items()
        }
        if resource is not None:
            # Linux tells kilobytes, macOS bytes
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            values["memory/process_gib"] = most / (2**30 if sys.platform == "darwin" else 2**20)
        device = trainer.strategy.root_device
        if device.type == "cuda":
            values["memory/cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        return values

    def _watch_gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure gradients just before they would be clipped.

        Lightning has a hook for callbacks a little earlier, but a model may still change its gradients after it, in
        ``on_before_optimizer_step``.
        """
        clip = pl_module.configure_gradient_clipping

        def measure_and_clip(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            if (trainer.global_step + 1) % self.every_n_steps == 0:
                gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                if gradients:
                    self._norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self.seconds += time.perf_counter() - began
            clip(optimizer, *args, **kwargs)

        pl_module.configure_gradient_clipping = measure_and_clip  # type: ignore[method-assign]


def learned(name: str, core: Core) -> dict[str, float]:
    """Return what a layer has learned about its kernel in few numbers, as far as it learns them; means over the heads.

    Example:
        >>> from ika_lightning.attention import RBF
        >>> learned("first", RBF(8, 2, p="learned").core)
        {'precision/first': 1.0, 'p/first': 2.0, 'magnitude_scale/first': 1.0}
    """
    values = ({} if core.spectrum is None else {"kl": core.kl}) | parts(core)
    return {f"{kind}/{name}": value.detach().float().mean().item() for kind, value in values.items()}


def count_units(batch: Any) -> dict[str, Any]:
    """Count what a batch holds: by its own ``counts``, else the samples of the first tensor in it.

    Example:
        >>> count_units({"name": "x", "x": torch.zeros(5, 3)}), count_units(None)
        ({'samples': 5}, {})
    """
    if isinstance(batch, CountsUnits):
        return dict(batch.counts)
    parts = list(batch.values()) if isinstance(batch, dict) else batch if isinstance(batch, list | tuple) else [batch]
    return next(({"samples": part.size(0)} for part in parts if isinstance(part, Tensor) and part.dim()), {})
