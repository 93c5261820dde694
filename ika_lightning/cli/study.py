"""``study``: which variant pays on this data, by equal tuning, repeats and honest statistics."""

from __future__ import annotations

import argparse
import os
import signal
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, get_args

from ika_lightning.cli.explain import UsageError
from ika_lightning.output import OutputError

__all__ = ["run_study"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try: {self.prog} --help")


class _Terminated(KeyboardInterrupt):
    """The end of a process that the system was asked to end, as clusters do when the time is over."""


def run_study(args: list[str]) -> None:
    """Run what is left of a study, and report what is done.

    Args:
        args: The options.

    Raises:
        UsageError: If an option is wrong, or Optuna is not installed.
        ValueError: If the study file says something wrong, or what was done was done in another way.
        OSError: If results cannot be written.
        SystemExit: With 1 if something has failed, 143 after SIGTERM.
        KeyboardInterrupt: After Ctrl-C, with what there is of a report.
    """
    if find_spec("optuna") is None:
        raise UsageError("study needs Optuna: pip install 'ika-lightning[study]'")
    from ika_lightning.study.books import Books, Changed
    from ika_lightning.study.cells import find_cell
    from ika_lightning.study.check import check_study
    from ika_lightning.study.definition import read_study
    from ika_lightning.study.ledger import Ledger, open_storage
    from ika_lightning.study.report import write_report
    from ika_lightning.study.run import Runner
    from ika_lightning.study.worker import Worker

    options = _parse(args, get_args(Changed))
    study = read_study(options.config)
    only = None if options.only is None else find_cell(study, options.only)
    output = options.output or study.file.parent / "results" / study.name
    _make_folder(output)
    ledger = Ledger(open_storage(output, options.storage), output / "running")
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        worker = Worker(study.threads, ledger.own_folder)
        data = list(study.data.values()) if only is None else [only.data]
        books = Books(study, ledger, check_study(study, data, ledger, worker, output, options.jobs))
        wanted = books.cells() if only is None else [only]
        runner = Runner(books, wanted, options.changed, worker, output, options.jobs, partial(print, flush=True))
        interrupt: KeyboardInterrupt | None = None
        try:
            runner.run()
        except KeyboardInterrupt as error:
            interrupt = error
        finished = books.finished()
        if only is None:
            page = write_report(study, books.rows(finished, options.changed), output)
            where = f"the report so far is {page}; the same command goes on" if interrupt else f"report: {page}"
        elif (row := finished.rows.get(only.name)) is not None:
            where = "\n".join(f"{name}: {row.measures.get(name)}" for name in study.report)
        else:
            where = f"{only.name} is not done; the same command goes on"
    finally:
        ledger.close()
        signal.signal(signal.SIGTERM, before)
    if isinstance(interrupt, _Terminated):
        print(f"terminated; {where}", flush=True)
        raise SystemExit(128 + signal.SIGTERM)
    if interrupt is not None:
        raise KeyboardInterrupt(f"; {where}")
    print(where)
    if finished.elsewhere:
        print(f"note: {finished.elsewhere} results are of cells that {study.file} does not have; they are not reported")
    if runner.failed:
        print(f"{len(runner.failed)} failed, first {next(iter(runner.failed))}: the same command tries them again")
        raise SystemExit(1)


def _parse(args: list[str], changed: tuple[str, ...]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m ika_lightning study",
        description="Tune, train and test variants on data sets, and report which is better, and how sure that is. "
        "What was done is not done again; the same command goes on where it was interrupted.",
        epilog="example: python -m ika_lightning study --config studies/concrete.yaml --jobs 2",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", required=True, help="the study file; see docs/study.md")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--only", metavar="DATA/VARIANT/REPEAT", help="do this cell, and what its tuning takes")
    parser.add_argument("--output", type=Path, help="folder of the results (default: results/NAME beside the file)")
    parser.add_argument(
        "--storage", help="a database of Optuna's, by its URL (default: a journal in the output folder)"
    )
    parser.add_argument(
        "--changed", choices=changed, default="refuse",
        help="what becomes of results whose configuration, data or code has changed since (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(args)
    if options.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {options.jobs}")
    return options


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write {folder}: no permission; choose another --output")


def _terminate(*_: Any) -> None:
    raise _Terminated
