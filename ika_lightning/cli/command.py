"""The subcommands: Lightning's own command line, made safe for newcomers."""

import argparse
import logging
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

import ika_lightning.attention
import ika_lightning.callbacks
import ika_lightning.data
import ika_lightning.tasks  # noqa: F401 (imported classes are known by their short names)
from ika_lightning.callbacks import LastCheckpoint, PredictionWriter, watching
from ika_lightning.cli import PROGRAM
from ika_lightning.cli.checkpoint import KEYWORDS, config_text, known_checkpoints, read_checkpoint
from ika_lightning.cli.explain import (
    UsageError,
    causes,
    check_files,
    explain,
    raised_by,
    raised_on_purpose,
    read_config,
)
from ika_lightning.cli.logs import go_on_logging
from ika_lightning.cli.record import differences, record
from ika_lightning.cli.report import ReportingTrainer
from ika_lightning.data.files import write_atomically

LOGGER = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": None, "default_hp_metric": False},
}
CHECKPOINT = {
    "monitor": "val/loss",
    "mode": "min",
    "filename": "best",
    # the same two names at every run, for commands to be written down before it
    "enable_version_counter": False,
    "auto_insert_metric_name": False,
}
EARLY_STOPPING = {"monitor": "val/loss", "patience": 50}
NOISE = (
    ".*does not have many workers",
    ".*is smaller than the logging interval",
    # a resumed run goes on in its own folder
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",
    # evaluation leaves out the callbacks of training
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    # the stride of an axis of size 1, such as that of a layer's only head, means nothing
    "Grad strides do not match bucket view strides",
    # layers are built late to know the data's sizes, not to be sharded
    "You're using the WeightAveraging callback with a model that overrides the configure_model",
    # the figures of an epoch come from torchmetrics, which have the shares of all processes in them
    "It is recommended to use `self.log.*sync_dist=True",
    # Lightning's use of PyTorch, none of the user's business
    ".*all_gather is deprecated",
    ".*LeafSpec.* is deprecated",
)


class Parser(LightningArgumentParser):
    """A parser that takes no abbreviations, and raises where jsonargparse would print its usage and exit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "exit_on_error": False})


class SaveConfig(SaveConfigCallback):
    """Puts the configuration of a training, and what else it depends on, into its log folder and its checkpoints."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.text = self.parser.dump(self.config, skip_unset=False)
        self.record = record(trainer.datamodule)  # type: ignore[attr-defined]
        folder = trainer.log_dir  # asked on every rank: it is a broadcast
        if folder and trainer.is_global_zero:
            os.makedirs(folder, exist_ok=True)
            write_atomically(Path(folder, "config.yaml"), self.text.encode())
            write_atomically(Path(folder, "run.yaml"), yaml.safe_dump(self.record, sort_keys=False).encode())

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.text
        checkpoint["run"] = self.record

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say on which versions and which data the training goes on that it did not begin with."""
        kept = {key: checkpoint.get("run", self.record)[key] for key in ("versions", "data")}
        if trainer.is_global_zero and (found := differences(kept, {key: self.record[key] for key in kept})):
            print(f"note: going on with other versions or data than before: {'; '.join(found)}", file=sys.stderr)


class Command(LightningCLI):
    """Parse and run one subcommand.

    On top of Lightning's command line: options override configuration files wherever they stand; a checkpoint
    brings its own configuration, of which evaluation takes model, data and precision; weights are never random where
    a trained model is meant; and mistakes are told in one line.

    Args:
        args: The subcommand and its options.
    """

    def __init__(self, args: list[str]) -> None:
        _quieten()
        self.fits = args[0] == "fit"
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=ReportingTrainer,
            save_config_callback=SaveConfig if self.fits else None,
            trainer_defaults={
                "logger": LOGGER if self.fits else False,
                "use_distributed_sampler": False,  # the data modules cut their samples by rank themselves
                "max_epochs": 200,
                "log_every_n_steps": 10,
                "devices": 1 if args[0] in ("predict", "report") else "auto",
            },
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        # checkpoints are always loaded as plain tensors, and predictions go to a file instead of back
        skipped = {
            name: names | {"weights_only", "return_predictions"} for name, names in LightningCLI.subcommands().items()
        }
        return {**skipped, "report": {"model", "datamodule"}}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.fits:
            parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
            parser.add_lightning_class_args(LastCheckpoint, "last")
            parser.add_lightning_class_args(EarlyStopping, "early_stopping")
            parser.set_defaults({f"checkpoint.{key}": value for key, value in CHECKPOINT.items()})
            parser.set_defaults({f"early_stopping.{key}": value for key, value in EARLY_STOPPING.items()})
            parser.add_argument(
                "--pictures", type=float, default=0.02,
                help="Most of the training time that pictures in TensorBoard may take; 0 draws none.",
            )  # fmt: skip

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("predict", "report"):
            purpose = "predict for" if subcommand == "predict" else "take examples from"
            parser.add_argument("--input", type=str, help=f"A file to {purpose}; short for --data.predict_path.")
        if subcommand == "predict":
            parser.add_argument(
                "--output", type=str, default="predictions.csv", help="Where predictions go; - is standard output."
            )
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        subcommand, words = args[0], args[1:]
        subparser = self._parser(subcommand)
        subparser.prog = f"{PROGRAM} {subcommand}"
        files: list[Path] = []
        try:
            given, options = _early_options(words)
            files = [Path(file) for file in given.config]
            check_files(files)
            configs = [str(file) for file in files] if self.fits else [_of_file(read_config(file)) for file in files]
            if not any(word in ("-h", "--help") or word.split("=")[0].endswith(".help") for word in options):
                configs = self._checkpoint_config(given, options, files) + configs
            config_options = [word for config in configs for word in ("--config", config)]
            self.config = parser.parse_args([subcommand, *config_options, *options])
        except ArgumentError as error:
            raise UsageError(explain(error, subparser, files)) from error

    def _checkpoint_config(self, given: argparse.Namespace, options: list[str], files: list[Path]) -> list[str]:
        """The configuration inside the checkpoint, if nothing else names a model; checks the checkpoint as well."""
        sections: dict[str, Any] = {}
        for file in files:
            sections |= yaml.safe_load(read_config(file))
        path = given.ckpt_path or sections.get("ckpt_path")
        if path is None or path in KEYWORDS:
            if self.fits and path != "best":
                return []  # a new training, or one to go on with that is looked for once its folder is known
            raise UsageError(
                (f"--ckpt_path {path} means nothing in a new process" if path else "--ckpt_path FILE is missing")
                + f": give the file of a checkpoint, or random weights would be used{known_checkpoints()}"
            )
        checkpoint = read_checkpoint(Path(path))
        if self.fits and "optimizer_states" not in checkpoint:
            raise UsageError(f"{path} holds weights alone: a training cannot go on from it")
        if "model" in sections or any(option.split("=")[0] == "--model" for option in options):
            return []
        text = config_text(checkpoint, Path(path))
        if text is None:
            raise UsageError(f"{path} does not tell its configuration: give --config FILE as well")
        return [_of_checkpoint(text, self.fits)]

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let the checkpoint silently override the options given."""

    @override
    def before_instantiate_classes(self) -> None:
        if self.fits:
            self._choose_run_folder(self.config.fit)
            self.trainer_defaults["callbacks"] = watching(self.config.fit.pictures)
        elif self.subcommand == "predict" and self.config.predict.output == "-":
            self.config.predict.trainer.enable_progress_bar = False  # it would go to standard output as well

    @staticmethod
    def _choose_run_folder(config: Any) -> None:
        """Name the run after its model unless it has a name; let a resumed run go on in its own folder."""
        logger = config.trainer.logger
        settings = getattr(logger, "init_args", None)
        if settings is None or "name" not in settings or "save_dir" not in settings:
            runs = Path(config.trainer.default_root_dir or ".", "checkpoints")
            found = [runs / "last.ckpt"] if (runs / "last.ckpt").is_file() else []
        else:
            settings.name = settings.name or config.model.class_path.rpartition(".")[2].lower()
            runs = Path(settings.save_dir, settings.name)
            found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
        if config.ckpt_path == "last":
            if not found:
                raise UsageError(f"--ckpt_path last: no last.ckpt below {runs} to go on from{known_checkpoints()}")
            config.ckpt_path = str(found[-1])
        if settings is not None and config.ckpt_path:
            folder = Path(config.ckpt_path).parent.parent
            if folder.parent.resolve() == runs.resolve() and settings.version is None:
                settings.version = folder.name

    @override
    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse wraps what a constructor raised into a list of the types that it tried
            origin = next((cause for cause in causes(error) if not raised_by(cause, "jsonargparse")), error)
            if isinstance(origin, ValueError) and raised_on_purpose(origin):
                raise UsageError(str(origin)) from origin
            raise origin from None

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
            trainer.callbacks.sort(key=lambda callback: not isinstance(callback, LastCheckpoint))  # type: ignore[attr-defined]
            return trainer
        except (TypeError, ValueError) as error:  # an option of the trainer that its types alone could not refuse
            raise UsageError(str(error)) from error

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "report":
            return kwargs
        kwargs["weights_only"] = True
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            if self.trainer.is_global_zero:
                print(f"terminated{self._last_checkpoint()}", file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM) from None
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # the trainer makes an exit of Ctrl-C
                raise KeyboardInterrupt(self._last_checkpoint()) from None
            raise
        finally:
            # Threads of gloo that still hold tensors when Python shuts down abort the process. Lightning sees to this
            # with NCCL only.
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()

    def _last_checkpoint(self) -> str:
        """An ending for what is said when a training is left: what to go on from, if there is something."""
        paths = [callback.path for callback in self.trainer.callbacks if isinstance(callback, LastCheckpoint)]  # type: ignore[attr-defined]
        return f"; the last checkpoint is {paths[0]}" if paths and paths[0] else ""

    def before_fit(self) -> None:
        """Check what can be checked before hours are spent."""
        self._check_batch_size_finder()
        if self.config.fit.ckpt_path is not None:
            self._compare_with_checkpoint(Path(self.config.fit.ckpt_path))

    def _check_batch_size_finder(self) -> None:
        """Refuse to look for a size of which there is none to begin with."""
        for finder in self.trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(finder, BatchSizeFinder):
                continue
            name = finder._batch_arg_name
            if getattr(self.datamodule, name, finder) is None:
                raise UsageError(f"BatchSizeFinder changes {name}, and the data has none; give --data.{name} 1")

    def _compare_with_checkpoint(self, path: Path) -> None:
        """Say what differs from the run that is gone on with, and let its logs go on as well."""
        checkpoint = read_checkpoint(path)
        before = yaml.safe_load(config_text(checkpoint, path) or "{}")
        now = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
        optimizers = [((part.get("model") or {}).get("init_args") or {}).get("optimizer") for part in (before, now)]
        old, new = (part["class_path"].rpartition(".")[2] if part else None for part in optimizers)
        if old and new and old != new:
            raise UsageError(
                f"{path} was trained with {old}, whose state {new} cannot go on with: leave out --model.optimizer, or "
                "begin a new training"
            )
        if before and (found := differences(before, now)) and self.trainer.is_global_zero:
            print(f"note: going on with another configuration: {'; '.join(found)}", file=sys.stderr)
        for logger in self.trainer.loggers if self.trainer.is_global_zero else []:
            go_on_logging(logger, checkpoint["global_step"])

    def after_fit(self) -> None:
        """Say where the results are and what to do with them."""
        checkpoint = self.trainer.checkpoint_callback
        if not self.trainer.is_global_zero or not isinstance(checkpoint, ModelCheckpoint):
            return
        best = checkpoint.best_model_path and _shown(checkpoint.best_model_path)
        if best:
            print(f"best checkpoint:  {best}")
            if checkpoint.best_model_score is not None:  # forked processes keep it to themselves
                print(f"{f'{checkpoint.monitor}:':<18}{checkpoint.best_model_score:.6g}")
        elif not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"no checkpoint:    {checkpoint.monitor} was never measured; train for longer or validate more often")
        for logger in self.trainer.loggers:
            if log_dir := getattr(logger, "log_dir", None):  # the trainer's own would wait for all processes
                folder, board = _shown(log_dir), isinstance(logger, TensorBoardLogger)
                how = f" (tensorboard --logdir {shlex.quote(folder)})" if board else ""
                print(f"{'TensorBoard:' if board else 'log:':<18}{folder}{how}")
        if best:
            print(f"to test it:       {PROGRAM} test --ckpt_path {shlex.quote(best)}")

    def before_predict(self) -> None:
        """Make the predictions go to the output file."""
        if self.trainer.world_size > 1:  # said here as well, before the other processes start
            raise UsageError("predict runs in one process: use --trainer.devices 1")
        self.writer = PredictionWriter(self.config.predict.output)
        self.trainer.callbacks.append(self.writer)  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Say where the predictions are, but not among them."""
        to_stdout = str(self.writer.path) == "-"
        where = "standard output" if to_stdout else self.writer.path
        print(f"{self.writer.count} predictions written to {where}", file=sys.stderr if to_stdout else sys.stdout)


def _shown(path: str) -> str:
    """A path as short as it can be told: from here on if it is below, else whole."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _early_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split off the options that decide where the rest of the configuration comes from."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("-c", "--config", action="append", default=[])
    early.add_argument("--ckpt_path")
    early.add_argument("--input")
    given, options = early.parse_known_args(words)
    if given.ckpt_path is not None:
        options += ["--ckpt_path", given.ckpt_path]
    if given.input is not None:
        options += ["--data.predict_path", given.input]
    return given, options


def _of_file(text: str) -> str:
    """A configuration file as evaluation reads it: a training's callbacks and logger would write where it wrote."""
    sections = yaml.safe_load(text)
    for section in ("checkpoint", "last", "early_stopping", "pictures"):
        sections.pop(section, None)
    for key in ("callbacks", "logger"):
        (sections.get("trainer") or {}).pop(key, None)
    return yaml.safe_dump(sections)


def _of_checkpoint(text: str, fits: bool) -> str:
    """A checkpoint's configuration: whole to resume; else what its results depend on, as devices are today's choice."""
    sections = yaml.safe_load(text)
    if fits:
        sections.pop("ckpt_path", None)
        return yaml.safe_dump(sections)
    kept = {key: sections[key] for key in ("seed_everything", "model", "data") if key in sections}
    return yaml.safe_dump(kept | {"trainer": {"precision": sections.get("trainer", {}).get("precision")}})


def _quieten() -> None:
    """Silence what tells a newcomer nothing; warnings about the run itself stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")  # its use of jsonargparse
