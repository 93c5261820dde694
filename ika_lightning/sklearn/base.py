"""What the estimators have in common: a training by the task's recipe, and a model that is a checkpoint."""

from __future__ import annotations

import inspect
import io
import logging
import math
import tempfile
import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from ika_lightning.callbacks import AveragedWeights
from ika_lightning.data.base import DataModule
from ika_lightning.data.corpus import Corpus
from ika_lightning.data.splits import share_of
from ika_lightning.internals import EpochProgressBar
from ika_lightning.output import write_output
from ika_lightning.tasks import Task
from ika_lightning.tasks.base import MONITOR
from ika_lightning.tasks.layers import find_layer
from ika_lightning.tasks.recipe import Recipe

# Held while the state of the process is another.
_ALONE = threading.RLock()

Model = TypeVar("Model", bound=Task[Any])
Kind = TypeVar("Kind", bound=Corpus[Any, Any, Any])
Data = TypeVar("Data", bound=DataModule[Any, Any, Any, Any])


class KernelAttentionEstimator(BaseEstimator, Generic[Model, Data]):
    """Base of the estimators.

    A subclass says in ``__init__`` what there is to choose, which scikit-learn reads there, and makes of it the data
    module and the task that the command line has: the same training, and the same model.

    Attributes:
        task: The task.
        data_class: Its data module.
        layers: The attention layers that have a name here.
        checkpoint_: The trained model as the bytes of a checkpoint.
    """

    task: ClassVar[type[Task[Any]]]
    data_class: ClassVar[type[DataModule[Any, Any, Any, Any]]]
    layers: ClassVar[Mapping[str, Any]]

    attention: Any
    learning_rate: float
    updates: int
    max_time: float | None
    validation_fraction: float
    random_state: Any
    verbose: int
    checkpoint_: bytes
    # what the checkpoint is, once it is looked at
    _model: tuple[Model, Data] | None

    def save(self, path: str | Path) -> None:
        """Write the trained model as a checkpoint, from which ``python -m ika_lightning predict`` predicts as well.

        Args:
            path: The file: whole or not at all.

        Raises:
            sklearn.exceptions.NotFittedError: Before :meth:`fit`.
            OSError: If it cannot be written.
        """
        self._fitted()
        write_output(path, self.checkpoint_)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the model, which the checkpoint is."""
        return super().__getstate__() | {"_model": None}

    # --- What a subclass says -----------------------------------------------------------------------------------------

    @abstractmethod
    def _make_task(self, layer: Any) -> Model:
        """Make the task, with an attention layer."""

    # --- How it is done -----------------------------------------------------------------------------------------------

    def _check(self, **at_least: int) -> None:
        """Check what all estimators have, and whole numbers that have to be as large as something."""
        for name, least in at_least.items():
            number = getattr(self, name)
            if not isinstance(number, Integral) or number < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
        self._check_positive("learning_rate", *(() if self.max_time is None else ("max_time",)))
        self._check_shares("dropout", "validation_fraction")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got num_heads={self.num_heads}, width={self.width}")
        if isinstance(self.attention, str) and self.attention not in self.layers:
            raise ValueError(
                f"attention must be a class of layers or one of {', '.join(self.layers)}, got {self.attention!r}"
            )

    def _check_positive(self, *names: str) -> None:
        for name in names:
            number = getattr(self, name)
            if not isinstance(number, Real) or not 0.0 < float(number) < math.inf:
                raise ValueError(f"{name} must be a positive, finite number, got {number!r}")

    def _check_shares(self, *names: str) -> None:
        for name in names:
            number = getattr(self, name)
            if not isinstance(number, Real) or not 0.0 <= float(number) < 1.0:
                raise ValueError(f"{name} must be a number of at least 0 and less than 1, got {number!r}")

    def _check_held_out(self, rows: int, least: int) -> None:
        """Check that enough is left for training beside what is for validation."""
        held_out = share_of(self.validation_fraction, rows)
        if rows - held_out < least:
            raise ValueError(
                f"X has {rows} rows, too few for {held_out} in validation and at least {least} in training; give more, "
                f"or lower validation_fraction={self.validation_fraction}"
            )

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _train(self, data: Data, seed: int) -> None:
        """Train on data, and keep the checkpoint of the best validation, or of the end."""
        with _alone(), _quiet(self.verbose), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(seed)
            layer = self.layers[self.attention] if isinstance(self.attention, str) else self.attention
            self.checkpoint_ = self._run(self._make_task(layer), data, Path(folder))
        self._model = self._load()

    def _run(self, model: Model, data: Data, folder: Path) -> bytes:
        recipe = self.task.recipe or Recipe(self.updates)
        every = max(1, self.updates // recipe.measurements)
        validates = self.validation_fraction > 0
        best = ModelCheckpoint(folder, "best", monitor=MONITOR)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=-1,
            max_steps=-1 if self.max_time else self.updates,
            max_time=None if self.max_time is None else timedelta(seconds=self.max_time),
            val_check_interval=every if validates else None,
            check_val_every_n_epoch=None if validates else 1,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            callbacks=[
                AveragedWeights(recipe.decay),
                _Named(data),
                *([best] if validates else []),
                *([EpochProgressBar()] if self.verbose else []),
            ],
            enable_checkpointing=validates,
            logger=False,
            enable_progress_bar=bool(self.verbose),
            enable_model_summary=bool(self.verbose),
            default_root_dir=folder,
            use_distributed_sampler=False,
        )
        trainer.fit(model, data)
        if best.best_model_path:
            return Path(best.best_model_path).read_bytes()
        # there was no validation, or no time for one
        trainer.save_checkpoint(folder / "end.ckpt")
        return (folder / "end.ckpt").read_bytes()

    def _fitted(self) -> tuple[Model, Data]:
        if not hasattr(self, "checkpoint_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> tuple[Model, Data]:
        # layers are drawn before they are loaded
        with _alone():
            model = self.task.load_from_checkpoint(io.BytesIO(self.checkpoint_), map_location="cpu")
        data = self.data_class.load_from_checkpoint(io.BytesIO(self.checkpoint_), map_location="cpu")
        return cast("Model", model.eval()), cast("Data", data)


def in_memory(kind: type[Kind], corpus: Corpus[Any, Any, Any], **data: Any) -> Kind:
    """A corpus that holds its data itself, with the options of another.

    Args:
        kind: Its class, a dataclass that has fields for the data besides those of the other.
        corpus: The other.
        **data: What is in those fields.
    """
    assert is_dataclass(corpus)
    return kind(**{each.name: getattr(corpus, each.name) for each in fields(corpus)}, **data)


class _Named(Callback):
    """Puts into a checkpoint the configuration by which the command line builds model and data again."""

    def __init__(self, data: DataModule[Any, Any, Any, Any]) -> None:
        self.data = data

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        of_model = {name: value for name, value in pl_module.hparams.items() if name not in pl_module.sizes}
        config = {
            "model": {
                "class_path": f"ika_lightning.tasks.{type(pl_module).__name__}",
                "init_args": of_model | {"attention": _explicit(pl_module)},
            },
            "data": {
                "class_path": f"ika_lightning.data.{type(self.data).__name__}",
                "init_args": dict(self.data.hparams),
            },
        }
        checkpoint["config"] = yaml.safe_dump(config, sort_keys=False)


def _explicit(model: Task[Any]) -> dict[str, Any]:
    """The attention of a model by name, with the options that the command line would take from the task's default."""
    named = model.hparams["attention"]
    layer = find_layer({"class_path": named["class_path"]})
    options = inspect.signature(cast("partial[Any]", layer).func).parameters
    default = inspect.signature(type(model)).parameters["attention"].default
    taken = default["init_args"] if isinstance(default, Mapping) else {}
    own = {name: options[name].default for name in taken if name in options}
    return {"class_path": named["class_path"], "init_args": own | named["init_args"]}


@contextmanager
def _alone() -> Iterator[None]:
    """Leave PyTorch's generator as it is, and compute in float32, as data comes, whatever the default is.

    Both are of the process, as is what is said of a training: threads take turns.
    """
    with _ALONE, torch.random.fork_rng():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def _quiet(verbose: int) -> Iterator[None]:
    """Keep what is said of a training to itself, unless it is asked for."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "ika_lightning")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers",
            "You're using the WeightAveraging callback with",
            ".*smaller than the logging interval",
            ".*LeafSpec.* is deprecated",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            for log in logs if not verbose else ():
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
