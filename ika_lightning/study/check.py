"""Look, before the first training, whether a study can be run, and what its results will be results of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from ika_lightning.data.messages import closest, quoted
from ika_lightning.study.cells import Identity, code_version, configuration_hash, files_of, short_hash, words_of
from ika_lightning.study.definition import Choice, DataSet, Study, Variant
from ika_lightning.study.ledger import Ledger
from ika_lightning.study.worker import Check, Checked, JobFailed, Worker, keep_log

__all__ = ["check_data_set", "check_study"]

Identities = dict[tuple[str, str], Identity]


def check_study(
    study: Study, data: Sequence[DataSet], ledger: Ledger, worker: Worker, folder: Path, jobs: int
) -> Identities:
    """Build all variants on data sets, and read what there is for training.

    Args:
        study: The study.
        data: The data sets to look at.
        ledger: Where it is noted down what was built, which need not be built again.
        worker: Who builds.
        folder: The folder of the study's results.
        jobs: How many data sets to look at at a time.

    Returns:
        What results are results of, by the names of data set and variant.

    Raises:
        ValueError: If a configuration does not take an override, or something that is not measured is reported.
    """
    code = code_version()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            found = list(pool.map(lambda each: _check(study, each, ledger, worker, folder, code), data))
        except BaseException:
            worker.stop()
            raise
    return {
        (each.name, variant.name): Identity(
            configuration_hash(study, each, variant), _with_files(study, each, variant, checked.fingerprint), code
        )
        for each, checked in zip(data, found, strict=True)
        for variant in study.variants.values()
    }


def _with_files(study: Study, data: DataSet, variant: Variant, fingerprint: str) -> str:
    """The fingerprint of data together with the files that trainings name; it itself if they name none."""
    files = files_of(data, variant, study.ranges(variant))
    return short_hash([fingerprint, files]) if files else fingerprint


def check_data_set(study: Study, data: DataSet) -> Check:
    """Return what builds everything that a study trains on a data set: each variant at both ends of its ranges.

    Args:
        study: The study.
        data: The data set.
    """
    repeat = data.repeats.values[0]
    variants: list[tuple[str, list[str]]] = []
    references = []
    for variant in study.variants.values():
        name = f"{data.name}/{variant.name}"
        if variant.reference is None:
            variants += [
                (name, words_of(data, variant, repeat, settings, refit=refit))
                for refit in ((False, True) if data.refit else (False,))
                for settings in _corners(study, variant)
            ]
        else:
            references.append((name, variant.reference, variant.overrides))
    baseline = study.variants[study.baseline]
    return Check(words_of(data, baseline, repeat, _corners(study, baseline)[0]), variants, references)


def _check(study: Study, data: DataSet, ledger: Ledger, worker: Worker, folder: Path, code: str) -> Checked:
    check, book = check_data_set(study, data), f"{study.name}/checked"
    content = data.config.read_text(encoding="utf-8")
    files = [files_of(data, variant, study.ranges(variant)) for variant in study.variants.values()]
    keys = [short_hash([words, content, code, *([files] if any(files) else [])]) for _, words in check.variants]
    new = [each for each, key in zip(check.variants, keys, strict=True) if not ledger.noted(book, key)]
    try:
        checked = worker.run(replace(check, variants=new))
    except JobFailed as failure:
        raise ValueError(f"{study.file}: {failure}{keep_log(folder, data.name, failure)}") from failure
    for place, metric in _metrics(study):
        stage, _, name = metric.partition("/")
        if checked.measures is not None and name not in checked.measures:
            there = [f"{stage}/{measure}" for measure in checked.measures]
            raise ValueError(
                f"{study.file}: {place}: {metric} is not measured on {data.name}{closest(name, checked.measures)}; "
                f"there are {quoted(there, 20)}"
            )
    for key in keys:
        ledger.note(book, key, True)
    return checked


def _metrics(study: Study) -> Iterator[tuple[str, str]]:
    yield from (("report", metric) for metric in study.report)
    if study.tuning is not None:
        yield "tune.metric", study.tuning.metric


def _corners(study: Study, variant: Variant) -> list[dict[str, Any]]:
    """The settings at the low ends of all ranges, and those at their high ends; the same once if nothing is tuned."""
    ranges = study.ranges(variant)
    if not ranges:
        return [{}]
    each = {
        name: range_.values if isinstance(range_, Choice) else (range_.low, range_.high)
        for name, range_ in ranges.items()
    }
    return [{name: values[place] for name, values in each.items()} for place in (0, -1)]
