"""The report of a study: tables as Markdown, and a page of HTML with pictures that needs no other file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ika_lightning.output import write_output
from ika_lightning.pictures.canvas import to_pixels, to_png
from ika_lightning.pictures.page import gallery, page, picture, table
from ika_lightning.study.cells import cells_of, written
from ika_lightning.study.comparison import Comparison, compare
from ika_lightning.study.definition import Study
from ika_lightning.study.drawing import forest, strip, time_beside
from ika_lightning.study.progress import duration
from ika_lightning.study.statistics import Paired
from ika_lightning.study.table import Row, to_csv

__all__ = ["write_report"]

CSV, MARKDOWN, PAGE = "results.csv", "report.md", "report.html"


@dataclass(frozen=True)
class _Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class _Picture:
    name: str
    shows: str
    png: bytes


@dataclass(frozen=True)
class _Chapter:
    """A title, paragraphs, then a table or a picture."""

    title: str
    text: Sequence[str] = ()
    content: _Table | _Picture | None = None


def write_report(study: Study, rows: Sequence[Row], folder: Path) -> Path:
    """Write the table of results, and what they say, as far as there are any.

    Args:
        study: The study.
        rows: Its results.
        folder: Where the files go: ``results.csv``, ``report.md``, ``report.html`` and pictures.

    Returns:
        The page.
    """
    write_output(folder / CSV, to_csv(rows))
    chapters = list(_chapters(study, rows))
    for chapter in chapters:
        if isinstance(chapter.content, _Picture):
            write_output(folder / f"{chapter.content.name}.png", chapter.content.png)
    write_output(folder / MARKDOWN, _markdown(study.name, chapters).encode())
    return write_output(folder / PAGE, _html(study.name, chapters).encode())


# --- What it says -----------------------------------------------------------------------------------------------------


def _chapters(study: Study, rows: Sequence[Row]) -> Iterable[_Chapter]:
    found = compare(study, rows)
    cells = list(cells_of(study))
    metric, mode = next(iter(study.report.items()))
    first = [each for each in found if each.metric == metric]
    better = "less" if mode == "min" else "more"
    question = f"Which variant has {better} {metric} than {study.baseline}, and how sure is that?"
    progress = f"{len(rows)} of {len(cells)} cells are done."
    if nothing := len({(each.data, each.variant, repeat) for each in found for repeat in each.lost}):
        progress += f" {nothing} of them came to no number."
    changed = [row for row in rows if row.changed]
    if changed:
        progress += (
            f" {len(changed)} of them are results of another configuration, other data or other code than today's; "
            f"{CSV} says which."
        )
    yield _Chapter("", [question, progress])
    if not first:
        return
    if any(each.paired is not None for each in first):
        yield _Chapter("In short", [_HOW_SHORT], _in_short(study, first))
        yield _Chapter("Gains", [], _Picture("gains", _HOW_FOREST, to_png(to_pixels(forest(first, study.baseline)))))
    for data in study.data:
        here = [each for each in found if each.data == data]
        for name in study.report:
            some = [each for each in here if each.metric == name]
            if some:
                text = [_HOW_TABLE] if data == next(iter(study.data)) and name == metric else []
                text += [_nothing(each, study.baseline) for each in some if each.lost]
                yield _Chapter(f"{data}: {name}", text, _comparisons(some, study.baseline))
    yield _Chapter("Repeats", [], _Picture("repeats", _HOW_STRIP, to_png(to_pixels(strip(first, study.baseline)))))
    yield _Chapter("Time", [], _Picture("time", _HOW_TIME, to_png(to_pixels(time_beside(first, study.baseline)))))
    if study.tuning is not None and any(row.chosen for row in rows):
        yield _Chapter("What tuning chose", _tuning_text(study, rows), _chosen(study, rows))
    yield _Chapter("How it was done", _how(study, rows))


_HOW_SHORT = (
    "On how many data sets each variant is significantly better or worse than the baseline: by a paired t-test over "
    "repeats, its probability adjusted for all variants on the data set (Holm), at 0.05."
)
_HOW_FOREST = (
    "Mean gain over the baseline in pairs of the same repeat, with its 95 % interval; right of the line is better. "
    "Blue and orange are significant after Holm's adjustment, grey is not."
)
_HOW_TABLE = (
    "The mean and its standard error; the mean gain over the baseline, positive where the variant is better, with its "
    "95 % interval (not adjusted); the probability of such a gain by chance (adjusted by Holm over the variants); in "
    "how many repeats the variant won, tied and lost; and seconds of a training by the clock."
)
_HOW_STRIP = "Each dot is a repeat, each bar the mean; the grey line is the mean of the baseline."
_HOW_TIME = "Seconds of a training by the clock, on a logarithmic scale, beside the mean; the diamond is the baseline."


def _nothing(each: Comparison, baseline: str) -> str:
    """What to say of a variant that has repeats without a number."""
    repeats = f"repeat{'' if len(each.lost) == 1 else 's'} {', '.join(each.lost)}"
    compared = "nothing is compared to it" if each.variant == baseline else "it is not compared"
    return (
        f"{each.variant} came to no number in {repeats}: a training diverged. What is left are the repeats that went "
        f"well, so {compared}; give it a lower learning rate, or a range with lower ones."
    )


def _in_short(study: Study, found: Sequence[Comparison]) -> _Table:
    rows = []
    for variant in study.variants:
        own = [each for each in found if each.variant == variant and each.paired is not None]
        if own:
            by = {
                verdict: [each.data for each in own if each.verdict == verdict] for verdict in ("better", "worse", "")
            }
            rows.append([variant, *(_listed(by[verdict]) for verdict in ("better", "worse", ""))])
    return _Table(["variant", "better on", "worse on", "no significant difference on"], rows)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}" if names else "0"


def _comparisons(found: Sequence[Comparison], baseline: str) -> _Table:
    header = ["variant", "mean ± error", "repeats", f"gain over {baseline}", "p", "won, tied, lost", "seconds"]
    rows = []
    for each in found:
        count = each.mean.count
        repeats = f"{count} of {count + len(each.lost)}" if each.lost else str(count)
        row = [each.variant, _plus_minus(each.mean.value, each.mean.error) if count else "", repeats]
        if (pair := each.paired) is None:
            row += ["", "", ""]
        else:
            row += [
                _gain(pair) if pair.count else "",
                f"{_probability(each.p)}{f', {each.verdict}' if each.verdict else ''}",
                f"{pair.wins}, {pair.ties}, {pair.losses}",
            ]
        rows.append([*row, f"{each.seconds.value:.3g}"])
    return _Table(header, rows)


def _chosen(study: Study, rows: Sequence[Row]) -> _Table:
    """The values of each variant on each data set; where repeats chose for themselves, all that were chosen."""
    lines = []
    for data in study.data:
        for variant in study.variants:
            own = [row for row in rows if (row.data, row.variant) == (data, variant) and row.chosen]
            for option in own[0].chosen if own else ():
                values = list(dict.fromkeys(_value(row.chosen[option]) for row in own))
                sides = sorted({row.at_ends[option] for row in own if option in row.at_ends})
                lines.append([data, variant, option, ", ".join(values), " and ".join(sides)])
    return _Table(["data", "variant", "option", "chosen", "at an end of its range"], lines)


def _tuning_text(study: Study, rows: Sequence[Row]) -> list[str]:
    if any(row.at_ends for row in rows):
        return [
            "Some values are in the outer tenth of their range, which was widened once already if that could be: the "
            "best may lie beyond. Give a wider range before anything rests on it."
        ]
    return []


def _how(study: Study, rows: Sequence[Row]) -> list[str]:
    said = []
    if (tuning := study.tuning) is not None:
        on = "each repeat by itself" if tuning.repeats is None else f"repeats {', '.join(map(str, tuning.repeats))}"
        said.append(
            f"Tuning: {tuning.trials} trials of each variant on each data set ({tuning.sampler}, seed {tuning.seed}), "
            f"by {tuning.metric} on validation data ({on}). Test data was used once in each cell, after that."
        )
        refits = {data.name: data.refit for data in study.data.values() if data.refit}
        for changes in {str(changes): changes for changes in refits.values()}.values():
            on = ", ".join(name for name in refits if refits[name] == changes)
            options = ", ".join(f"{option}={written(value)}" for option, value in changes.items())
            said.append(f"On {on}, what was tested was trained with {options}, unlike the trials.")
    else:
        said.append("Nothing was tuned. Test data was used once in each cell.")
    said.append(
        "Intervals take repeats for independent. Random splits of one table share rows, which makes intervals somewhat "
        "too narrow; repeats that differ by a seed alone tell nothing of other data."
    )
    references = [variant.name for variant in study.variants.values() if variant.reference is not None]
    if references:
        said.append(
            f"{', '.join(references)}: from outside, fitted as they come, without tuning, on training and validation "
            "rows together."
        )
    total = sum(row.seconds for row in rows)
    versions = sorted({", ".join(f"{name} {number}" for name, number in row.versions.items()) for row in rows})
    hosts = sorted({row.host for row in rows})
    said.append(
        f"{duration(total)} of training for the cells alone, each on {_count(study.threads, 'thread')} of "
        f"{', '.join(hosts)}."
    )
    said += [f"Versions: {each}." for each in versions]
    return said


# --- How it looks -----------------------------------------------------------------------------------------------------


def _markdown(name: str, chapters: Sequence[_Chapter]) -> str:
    lines = [f"# Study: {name}", ""]
    for chapter in chapters:
        if chapter.title:
            lines += [f"## {chapter.title}", ""]
        for paragraph in chapter.text:
            lines += [paragraph, ""]
        match chapter.content:
            case _Table(header, rows):
                lines += [f"| {' | '.join(map(_cell, row))} |" for row in (header, ["---"] * len(header), *rows)]
                lines.append("")
            case _Picture(picture_name, shows):
                lines += [shows, "", f"![{shows}]({picture_name}.png)", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _html(name: str, chapters: Sequence[_Chapter]) -> str:
    title = f"Study: {name}"
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for chapter in chapters:
        if chapter.title:
            parts.append(f"<h2>{html.escape(chapter.title)}</h2>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in chapter.text]
        match chapter.content:
            case _Table(header, rows):
                parts.append(table(header, rows, numbers=True))
            case _Picture(name, shows, png):
                parts.append(gallery([picture(name, png, shows)]))
    return page(title, parts)


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"


def _plus_minus(value: float, error: float) -> str:
    """A mean and its error, as far as the error lets it be known."""
    if math.isnan(error) or error == 0:
        return f"{value:.4g}"
    places = _places(error)
    return f"{value:.{places}f} ± {error:.{places}f}"


def _gain(pair: Paired) -> str:
    """A gain and its interval, as far as the interval lets it be known."""
    half = (pair.high - pair.low) / 2
    if math.isnan(half) or half == 0:
        return f"{pair.gain:+.3g}"
    gain, low, high = (f"{value:+.{_places(half)}f}" for value in (pair.gain, pair.low, pair.high))
    return f"{gain} [{low}, {high}]"


def _places(error: float) -> int:
    """Decimal places to the second digit of an error."""
    return max(0, 1 - math.floor(math.log10(error)))


def _probability(p: float) -> str:
    if math.isnan(p):
        return ""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
