"""The subcommands: Lightning's own command line, made safe for newcomers."""

import argparse
import logging
import math
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelCheckpoint, ModelSummary, RichProgressBar
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
from ika_lightning.cli.checkpoint import KEYWORDS, known_checkpoints, read_checkpoint, read_config
from ika_lightning.cli.explain import (
    NO_FILE,
    UsageError,
    causes,
    explain,
    raised_by,
    raised_on_purpose,
    read_file,
)
from ika_lightning.cli.export import ExportingTrainer
from ika_lightning.cli.length import set_length
from ika_lightning.cli.logs import go_on_logging, quiet_threads
from ika_lightning.cli.record import differences, record
from ika_lightning.cli.report import ReportingTrainer
from ika_lightning.cli.runs import CONFIG, RECORD, Place, Run, file_loggers, other_processes_run, own_run
from ika_lightning.cli.summary import NetworkSummary
from ika_lightning.internals import EpochProgressBar, argument_of_finder, set_version
from ika_lightning.output import is_standard_output, write_output
from ika_lightning.tasks.base import MONITOR, Task
from ika_lightning.trust import Names, join_places, named_places, parse_option, plain_tensors

LOGGER = {
    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
    "init_args": {"save_dir": "runs", "name": None, "default_hp_metric": False},
}
CHECKPOINT = {
    "monitor": MONITOR,
    "mode": "min",
    "filename": "best",
    # the same two names at every run, for commands to be written down before it
    "enable_version_counter": False,
    "auto_insert_metric_name": False,
}
EARLY_STOPPING = {"monitor": MONITOR, "patience": 50}
#: Where a checkpoint keeps what the validation before it has measured.
MEASURED = "measured"
# the subcommands that are ours and not Lightning's, which read checkpoints themselves
OWN = ("report", "export")


class CommandTrainer(ReportingTrainer, ExportingTrainer):
    """A trainer with all subcommands, Lightning's and those of :data:`OWN`."""


# the sections of a training's configuration that are arguments of a class
GROUPS: dict[str, type] = {
    "trainer": CommandTrainer,
    "checkpoint": ModelCheckpoint,
    "last": LastCheckpoint,
    "early_stopping": EarlyStopping,
}
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
    """Puts the configuration of a training, and what else it depends on, into its folder and its checkpoints."""

    run: Run
    #: All options of ``fit``, as a file has them.
    options: dict[str, Any]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note what the run is made of, and that all processes go on from the same checkpoint.

        Raises:
            ValueError: If they do not, as one of them has found another.
        """
        # only that of another run is a part of what this one is
        options = self.options | {"ckpt_path": self.run.origin and str(self.run.origin)}
        self.text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        self.record = {**self.run.about, **record(trainer.datamodule)}  # type: ignore[attr-defined]
        here = str(self.run.checkpoint)
        if here != (first := trainer.strategy.broadcast(here)):
            raise ValueError(
                f"process {trainer.global_rank} goes on from {here}, and process 0 from {first}; give its file as "
                "--ckpt_path"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not before: what is there of a run that goes on is of use as long as it has not
        if self.run.folder is not None and trainer.is_global_zero:
            write_output(self.run.folder / CONFIG, self.text.encode())
            write_output(self.run.folder / RECORD, yaml.safe_dump(self.record, sort_keys=False).encode())

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.text
        checkpoint["run"] = self.record
        # figures of training are those of the epoch before
        watched = {
            callback.monitor for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
        }
        checkpoint[MEASURED] = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/") or name in watched
        }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say on which versions and which data the training goes on that it did not begin with."""
        self._keep_best(trainer, checkpoint["callbacks"])
        kept = {key: checkpoint.get("run", self.record)[key] for key in ("versions", "data")}
        if trainer.is_global_zero and (found := differences(kept, {key: self.record[key] for key in kept})):
            print(f"note: going on with other versions or data than before: {'; '.join(found)}", file=sys.stderr)

    def _keep_best(self, trainer: Trainer, states: dict[str, Any]) -> None:
        """Let a run keep its best checkpoints, by whatever path it is known today, and none of another run."""
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.state_key not in states:
                continue
            if self.run.origin is not None:
                del states[callback.state_key]
            elif self.run.checkpoint is not None and callback.dirpath is not None:
                state, here = states[callback.state_key], Path(callback.dirpath)
                if here.resolve() == self.run.checkpoint.parent.resolve():
                    states[callback.state_key] = _moved(state, state["dirpath"], str(callback.dirpath))


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
        self.asked, self.fits = args[0], args[0] == "fit"
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=CommandTrainer,
            save_config_callback=SaveConfig if self.fits else None,
            trainer_defaults={
                "logger": LOGGER if self.fits else False,
                "use_distributed_sampler": False,  # the data modules cut their samples by rank themselves
                "log_every_n_steps": 10,
                "devices": 1 if args[0] in ("predict", *OWN) else "auto",
            },
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The subcommand that was asked for: a parser of each would take a third of a second."""
        # checkpoints are always loaded as plain tensors, and predictions go to a file instead of back
        skipped = {
            name: names | {"weights_only", "return_predictions"} for name, names in LightningCLI.subcommands().items()
        }
        skipped |= {name: {"model", "datamodule"} for name in OWN}
        return {self.asked: skipped[self.asked]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # data is encoded by the tokenizer of the model's encoder; tasks without one have neither
        parser.link_arguments("model.init_args.pretrained", "data.init_args.pretrained")
        if self.fits:
            for section, callback in list(GROUPS.items())[1:]:
                parser.add_lightning_class_args(callback, section)
            parser.set_defaults({f"checkpoint.{key}": value for key, value in CHECKPOINT.items()})
            parser.set_defaults({f"early_stopping.{key}": value for key, value in EARLY_STOPPING.items()})
            parser.add_argument(
                "--pictures", type=float, default=0.02,
                help="Most of the training time that pictures in TensorBoard may take before its end; 0 draws none.",
            )  # fmt: skip

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument(
            "--trust", type=str, action="append", metavar="CLASS",
            help="A class that the checkpoint may name besides those of this package; may be given several times.",
        )  # fmt: skip
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
            sections = [read_file(file) for file in files]
            named = [*(place for file in sections for place in named_places(file)), *_named_in(options)]
            _check_links({place for place, _ in named})
            _import_convolutions(named)
            configs = [str(file) for file in files] if self.fits else [_of_file(part) for part in sections]
            if not any(word in ("-h", "--help") or word.split("=")[0].endswith(".help") for word in options):
                configs = self._checkpoint_config(given, options, sections) + configs
            config_options = [word for config in configs for word in ("--config", config)]
            self.config = parser.parse_args([subcommand, *config_options, *options])
        except ArgumentError as error:
            raise UsageError(explain(error, subparser, files)) from error

    def _checkpoint_config(
        self, given: argparse.Namespace, options: list[str], files: list[dict[str, Any]]
    ) -> list[str]:
        """The configuration inside the checkpoint, if nothing else names a model; checks the checkpoint as well."""
        sections = {key: value for file in files for key, value in file.items()}
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
        config = read_config(checkpoint, Path(path))
        if config is None:
            raise UsageError(f"{path} does not tell its configuration: give --config FILE as well")
        _import_convolutions(named_places(config))
        trusted = [*given.trust, *(name for place, name in named_places(sections) if place == "trust")]
        own = {place for file in files for place in named_places(file)} | set(_named_in(options))
        return [_as_option(Names(path, self.fits, trusted, own).usable(config, GROUPS))]

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would let the checkpoint silently override the options given."""

    @override
    def _dump_config(self) -> None:
        """Note the arguments that model and data are made with, for checkpoints; what was parsed is valid."""
        if not hasattr(self, "config_dump"):
            text = self._parser(self.subcommand).dump(
                self.config[self.subcommand], skip_link_targets=False, skip_unset=False, skip_validation=True
            )
            self.config_dump = yaml.safe_load(text)

    @override
    def before_instantiate_classes(self) -> None:
        if self.fits:
            set_length(self.config.fit)
            self._name_loggers(self.config.fit)
            self.trainer_defaults["callbacks"] = watching(self.config.fit.pictures)
        elif self.subcommand == "predict" and is_standard_output(self.config.predict.output):
            self.config.predict.trainer.enable_progress_bar = False  # it would go to standard output as well

    def _name_loggers(self, config: Any) -> None:
        """Name the run after its data unless it has a name."""
        name = _name_of_data(config.data) or config.model.class_path.rpartition(".")[2].lower()
        self.root = Path(config.trainer.default_root_dir or "runs", name)
        logger = config.trainer.logger
        for chosen in logger if isinstance(logger, list) else [logger]:
            settings = getattr(chosen, "init_args", None)
            if settings is not None and "name" in settings and "save_dir" in settings:
                settings.name = settings.name or name
                settings.save_dir = os.path.expanduser(settings.save_dir)

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
        chosen = self.config_init[self.subcommand].trainer.callbacks or []
        # the trainer adds its own to the list that it is given
        own = [*chosen] if isinstance(chosen, list) else [chosen]
        try:
            trainer = super().instantiate_trainer(**kwargs)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks.sort(key=lambda callback: not isinstance(callback, LastCheckpoint))
            for number, callback in enumerate(callbacks):
                if type(callback) is RichProgressBar:
                    callbacks[number] = EpochProgressBar.like(callback)
                # one that the user has chosen stays
                elif isinstance(callback, ModelSummary) and callback not in own:
                    callbacks[number] = NetworkSummary()
            return trainer
        except (TypeError, ValueError) as error:  # an option of the trainer that its types alone could not refuse
            raise UsageError(str(error)) from error

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand in OWN:
            return kwargs
        kwargs["weights_only"] = True
        return kwargs | {"return_predictions": False} if subcommand == "predict" else kwargs

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        try:
            if not self.fits:
                self._expect(Path(self.config[subcommand].ckpt_path))
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

    def _expect(self, path: Path) -> None:
        """Tell the model what it is about to be loaded from."""
        if isinstance(self.model, Task):
            self.model.expect(read_checkpoint(path), self.datamodule)

    def _last_checkpoint(self) -> str:
        """An ending for what is said when a training is left: what to go on from, if there is something."""
        paths = [callback.path for callback in self.trainer.callbacks if isinstance(callback, LastCheckpoint)]  # type: ignore[attr-defined]
        return f"; the last checkpoint is {paths[0]}" if paths and paths[0] else ""

    def before_fit(self) -> None:
        """Check what can be checked before hours are spent."""
        self._check_batch_size_finder()

    def fit(self, ckpt_path: str | None = None, **kwargs: Any) -> None:
        """Train, in a folder that no other run has.

        Args:
            ckpt_path: What to go on from.
            **kwargs: What else the trainer is given.
        """
        trainer = self.trainer
        # what was parsed is valid
        config = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False, skip_validation=True))
        # what Lightning finds by itself is nothing that a run is known by
        wanted = None if ckpt_path in KEYWORDS and ckpt_path != "last" else ckpt_path
        writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        have_run = own_run if writes else other_processes_run
        with have_run(Place.of(trainer, self.root), wanted, config) as run, quiet_threads():
            if run.folder is not None:
                for logger in file_loggers(trainer):
                    set_version(logger, run.version)
                    go_on_logging(logger, run.step)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, SaveConfig):
                    callback.run, callback.options = run, config
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None and run.checkpoints is not None:
                    callback.dirpath = str(run.checkpoints)
            if run.checkpoint is not None:
                self._expect(run.checkpoint)
            trainer.fit(ckpt_path=run.checkpoint if wanted else ckpt_path, **kwargs)

    def _check_batch_size_finder(self) -> None:
        """Refuse to look for a size of which there is none to begin with."""
        for finder in self.trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(finder, BatchSizeFinder):
                continue
            name = argument_of_finder(finder)
            if getattr(self.datamodule, name, finder) is None:
                raise UsageError(f"BatchSizeFinder changes {name}, and the data has none; give --data.{name} 1")

    def after_fit(self) -> None:
        """Say where the results are and what to do with them."""
        checkpoint = self.trainer.checkpoint_callback
        if not self.trainer.is_global_zero or not isinstance(checkpoint, ModelCheckpoint):
            return
        best = checkpoint.best_model_path and _shown(checkpoint.best_model_path)
        if best:
            print(f"best checkpoint:  {best}")
            for name, value in _measures(Path(checkpoint.best_model_path), checkpoint):
                print(f"{f'{name}:':<18}{value}")
            score = checkpoint.best_model_score
            if score is not None and not math.isfinite(score):
                print(
                    f"note: the training has diverged: {checkpoint.monitor} was no number, or infinite, in all "
                    "validations; train with a lower learning rate (--model.optimizer.lr), or clip gradients "
                    "(--trainer.gradient_clip_val 1)",
                    file=sys.stderr,
                )
        elif not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"no checkpoint:    {checkpoint.monitor} was never measured; train for longer or validate more often")
        for logger in self.trainer.loggers:
            if log_dir := getattr(logger, "log_dir", None):  # the trainer's own would wait for all processes
                folder, board = _shown(log_dir), isinstance(logger, TensorBoardLogger)
                how = f" (tensorboard --logdir {shlex.quote(folder)})" if board else ""
                print(f"{'TensorBoard:' if board else 'log:':<18}{folder}{how}")
        if best:
            checkpoint_option = f"--ckpt_path {shlex.quote(best)}"
            print(f"to test it:       {PROGRAM} test {checkpoint_option}")
            if isinstance(self.model, Task):
                print(f"to predict:       {PROGRAM} predict {checkpoint_option} --input FILE")
                print(f"to look into it:  {PROGRAM} report {checkpoint_option}")

    def before_predict(self) -> None:
        """Make the predictions go to the output file."""
        if self.trainer.world_size > 1:  # said here as well, before the other processes start
            raise UsageError("predict runs in one process: use --trainer.devices 1")
        self.writer = PredictionWriter(self.config.predict.output)
        self.trainer.callbacks.append(self.writer)  # type: ignore[attr-defined]

    def after_predict(self) -> None:
        """Say where the predictions are, but not among them."""
        to_stdout = is_standard_output(self.writer.path)
        where = "standard output" if to_stdout else self.writer.path
        print(f"{self.writer.count} predictions written to {where}", file=sys.stderr if to_stdout else sys.stdout)


def _name_of_data(data: Any) -> str | None:
    """What a run is called by the data that it learns from: a known data set, or the file of one's own."""
    arguments = getattr(data, "init_args", None) or {}
    # a source is the language of a known data set, or the file of sentences to translate
    for argument in ("name", "path", "source"):
        if isinstance(value := arguments.get(argument), str) and value:
            return Path(value.removesuffix(".gz")).stem
    return None


def _measures(path: Path, callback: ModelCheckpoint) -> Iterator[tuple[str, str]]:
    """What the best checkpoint was measured at, all of one epoch, what is monitored first; nothing if it is gone."""
    if not path.is_file():
        return
    # the weights are not looked at
    with plain_tensors():
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
    measured = checkpoint.get(MEASURED, {})
    for name in sorted(measured, key=lambda name: (name != callback.monitor, name)):
        yield name, f"{measured[name]:.6g}"
    yield "of epoch", str(checkpoint["epoch"])


def _shown(path: str) -> str:
    """A path as short as it can be told: from here on if it is below, else whole."""
    absolute = Path(path).resolve()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _moved(state: Any, before: str, now: str) -> Any:
    """The state of a callback whose files are in a folder that has another name now."""
    match state:
        case str():
            return now + state.removeprefix(before) if state.startswith(before) else state
        case dict():
            return {_moved(key, before, now): _moved(value, before, now) for key, value in state.items()}
    return state


def _early_options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split off the options that decide where the rest of the configuration comes from."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("-c", "--config", action="append", default=[])
    early.add_argument("--ckpt_path")
    early.add_argument("--input")
    early.add_argument("--trust", action="append", default=[])
    given, options = early.parse_known_args(words)
    if given.ckpt_path is not None:
        options += ["--ckpt_path", given.ckpt_path]
    if given.input is not None:
        options += ["--data.predict_path", given.input]
    return given, options


def _named_in(options: list[str]) -> Iterator[tuple[str, str]]:
    """Go through the names that options give, each with its place."""
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        key, given, value = option.removeprefix("--").partition("=")
        yield from named_places(parse_option(value if given else following), join_places("", key))


def _check_links(places: set[str]) -> None:
    """Refuse that data is given what it takes from the model, which would be overridden in silence."""
    if "data.pretrained" in places:
        raise UsageError("--data.pretrained: data takes it from the model; say it once, as --model.pretrained")


def _import_convolutions(named: Iterable[tuple[str, str]]) -> None:
    """Make convolutions known by their names where one is named: PyTorch Geometric takes longer than all else."""
    if any(place == "model.conv" or place.startswith("model.conv.") for place, _ in named):
        import_module("ika_lightning.attention.graph")


def _of_file(sections: dict[str, Any]) -> str:
    """A configuration file as evaluation reads it: a training's callbacks and logger would write where it wrote."""
    kept = {
        key: value for key, value in sections.items() if key not in ("checkpoint", "last", "early_stopping", "pictures")
    }
    if isinstance(trainer := kept.get("trainer"), dict):
        kept["trainer"] = {key: value for key, value in trainer.items() if key not in ("callbacks", "logger")}
    return _as_option(kept)


def _as_option(sections: dict[str, Any]) -> str:
    """A configuration as the value of ``--config``."""
    return f"{NO_FILE}\n{yaml.safe_dump(sections)}"


def _quieten() -> None:
    """Silence what tells a newcomer nothing; warnings about the run itself stay."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for noise in NOISE:
        warnings.filterwarnings("ignore", noise)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")  # its use of jsonargparse
