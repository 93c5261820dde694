"""The command line: ``python -m ika_lightning {fit,validate,test,predict,report,export,datasets,calibrate,study}``.

This module is the front door. It answers ``--help`` and ``--version`` without importing PyTorch, and turns the end of
a command into an exit code. :mod:`~ika_lightning.cli.command` does the work, :mod:`~ika_lightning.cli.checkpoint`
reads checkpoints, and :mod:`~ika_lightning.cli.explain` puts errors into one line.
"""

import difflib
import gc
import os
import sys
from typing import NoReturn

from ika_lightning import __version__

__all__ = ["main"]

PROGRAM = "python -m ika_lightning"

SUBCOMMANDS = {
    "fit": "train a model; keeps the best and the last checkpoint",
    "validate": "measure a checkpoint on the validation data",
    "test": "measure a checkpoint on the test data",
    "predict": "write a checkpoint's predictions for new data",
    "report": "draw what a checkpoint has learned, as a page with pictures",
    "export": "write a checkpoint as a file that is used without this package",
    "datasets": "list the data sets that are known by name, and which of them are on this computer",
    "calibrate": "measure what attention costs on this machine",
    "study": "compare attentions on data of your own, with equal tuning and repeats",
}

HELP = f"""\
usage: {PROGRAM} {{{",".join(SUBCOMMANDS)}}} [options]

Implicit kernel attention: train, measure and use models.

subcommands:
{chr(10).join(f"  {name:<10}{purpose}" for name, purpose in SUBCOMMANDS.items())}

options:
  -h, --help  show this help; after a subcommand, show all of its options
  --version   show the version

examples:
  {PROGRAM} fit --config configs/regression/co2.yaml
  {PROGRAM} fit --config configs/regression/co2.yaml --model.attention MIKAN
  {PROGRAM} test --ckpt_path runs/co2/version_0/checkpoints/best.ckpt
  {PROGRAM} predict --ckpt_path runs/co2/version_0/checkpoints/best.ckpt --input new.csv --output predictions.csv
  {PROGRAM} report --ckpt_path runs/co2/version_0/checkpoints/best.ckpt --output report
  {PROGRAM} export --ckpt_path runs/co2/version_0/checkpoints/best.ckpt --output model.pt2
  {PROGRAM} fit --model.help Regression
  {PROGRAM} datasets
  {PROGRAM} calibrate
  {PROGRAM} study --config studies/concrete.yaml --jobs 2
"""


def main(args: list[str] | None = None) -> None:
    """Run one command.

    Args:
        args: The words after ``python -m ika_lightning``; those of the process by default.

    Raises:
        SystemExit: With 0 after help, 2 after a mistake of the user's (one line on stderr), 130 after Ctrl-C.
            What is nobody's mistake but ours keeps its traceback.

    Example:
        >>> main(["--version"])
        Traceback (most recent call last):
        SystemExit: 0
    """
    args = sys.argv[1:] if args is None else args
    match args:
        case [] | ["-h" | "--help", *_]:
            print(HELP, end="")
            raise SystemExit(0 if args else 2)
        case ["--version", *_]:
            print(f"ika-lightning {__version__}")
            raise SystemExit(0)
        case [first, *_] if first not in SUBCOMMANDS:
            near = difflib.get_close_matches(first, SUBCOMMANDS, n=1) or [", ".join(SUBCOMMANDS)]
            _fail(f"unknown subcommand {first!r}; did you mean {near[0]}? Try: {PROGRAM} --help")
    _run(args)


def _run(args: list[str]) -> None:
    try:
        if args[0] == "datasets":
            from ika_lightning.cli.datasets import list_datasets

            list_datasets(args[1:])
            return
        # Importing PyTorch and Lightning creates a million objects that stay; looking for garbage among them meanwhile
        # takes a third of the start-up.
        gc.disable()
        if args[0] == "calibrate":
            from ika_lightning.cli.calibrate import run

            gc.enable()
            run(args[1:])
            return
        if args[0] == "study":
            from ika_lightning.cli.study import run_study

            gc.enable()
            run_study(args[1:])
            return
        from ika_lightning.cli.startup import import_lightning

        import_lightning()
        from ika_lightning.cli.command import Command

        gc.freeze()
        gc.enable()
        Command(args)
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{interrupt}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        from ika_lightning.cli.explain import user_message

        if (message := user_message(error)) is None:
            raise
        _fail(message)


def _fail(message: str) -> NoReturn:
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try again at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # in one piece, for other processes may be saying something, too
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(2)
