"""The tables of what was measured, in the documentation and in README, from the files of results.

    python benchmarks/measured.py            write them into the pages
    python benchmarks/measured.py --check    say which page has another table than the results, and end with 1

A table stands in a page below a line ``<!-- measured: NAME -->`` and reaches to the next empty line; all of it is made
here, from ``benchmarks/results``, and nothing in it by hand. Which command measures it anew stands with the table.
Intervals are of 95 %, of differences paired by seed, split or fold, by Student's distribution; those of several
variants of one data set are not corrected for being several.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ika_lightning.output import write_output
from ika_lightning.study.statistics import mean, paired

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/measured.md")
TABLE = re.compile(r"^(<!-- measured: (\S+) -->)\n(?:[^\n]+\n)*", re.MULTILINE)
FEWEST_PAIRS = 3  # that a comparison in brief takes
DATA = {
    "boston": "Boston",
    "concrete": "Concrete",
    "energy": "Energy",
    "kin8nm": "kin8nm",
    "wine_quality_red": "red wine",
    "yacht": "Yacht",
    "trec": "TREC",
    "sst2": "SST-2",
    "subj": "Subj",
    "mr": "MR",
    "cora": "Cora",
    "citeseer": "Citeseer",
    "digits": "digits",
}


def regression() -> pd.DataFrame:
    """Return test RMSE by table, attention and split."""
    fits = _read("regression")
    return _tidy(fits[fits.stage == "test"], variant="attention", repeat="split", value="rmse")


def text() -> pd.DataFrame:
    """Return test accuracy in percent by data set, attention and seed or fold."""
    fits = _read("text_classification")
    return _tidy(fits[fits.stage == "test"], variant="attention", repeat="seed", value="accuracy")


def nodes() -> pd.DataFrame:
    """Return test accuracy in percent by graph, convolution and seed, at the learning rate that validation chose.

    The rate is that of the highest mean validation accuracy over the seeds that all rates were tried with; where two
    are equal on the first three, over all that both have.
    """
    fits = _read("node_classification").assign(test=lambda fits: 100 * fits.test)
    chosen = []
    for _, tried in fits.groupby(["data", "conv"], sort=False):
        by_rate = tried.pivot(index="seed", columns="lr", values="val").dropna()
        first = by_rate.loc[:2].mean().round(9)
        best = first[first == first.max()].index
        rate = by_rate[best].mean().idxmax()
        chosen.append(tried[tried.lr == rate])
    return _tidy(pd.concat(chosen), variant="conv", repeat="seed", value="test")


def short_translation() -> pd.DataFrame:
    """Return validation loss of Multi30k after 1,200 updates by attention and seed."""
    fits = _read("translation_short")
    fits["variant"] = [
        row.attention + ("" if row.attention == "DotProduct" else f", p = {_exponent(row.p)}{_few(row.samples)}")
        for row in fits.itertuples()
    ]
    return _tidy(fits.assign(data="Multi30k"), variant="variant", repeat="seed", value="val_loss")


def _few(samples: float) -> str:
    """How many samples a head has, where it is another number than the configuration's."""
    return "" if math.isnan(samples) or samples == 32 else f", M = {samples:.0f}"


def pretrained() -> pd.DataFrame:
    """Return test accuracy in percent of a fine-tuned encoder by data set, attention and seed."""
    return _tidy(_read("pretrained"), variant="attention", repeat="seed", value="test_accuracy")


def means(fits: pd.DataFrame, digits: int, *, less_is_better: bool, first: str) -> str:
    """Return a table of means and standard errors: a row for each variant, a column for each data set; best ones bold.

    Args:
        fits: What was measured, as columns data, variant, repeat and value.
        digits: Decimal places.
        less_is_better: Whether the lowest mean is the best.
        first: Head of the column of variants.
    """
    sets = list(dict.fromkeys(fits.data))
    found = {key: mean(group.value.tolist()) for key, group in fits.groupby(["data", "variant"], sort=False)}
    best = {
        name: (min if less_is_better else max)(round(m.value, digits) for (data, _), m in found.items() if data == name)
        for name in sets
    }

    def cell(data: str, variant: str) -> str:
        if (data, variant) not in found:
            return ""
        what = found[data, variant]
        error = "" if math.isnan(what.error) else f" ± {what.error:.{digits}f}"
        shown = f"{what.value:.{digits}f}{error} ({what.count})"
        return f"**{shown}**" if round(what.value, digits) == best[data] else shown

    rows = [[variant, *(cell(data, variant) for data in sets)] for variant in dict.fromkeys(fits.variant)]
    return _markdown([first, *(DATA.get(name, name) for name in sets)], rows)


def gains(fits: pd.DataFrame, digits: int, baseline: str, *, less_is_better: bool, first: str) -> str:
    """Return a table of gains over a baseline, positive where a variant is better, with intervals of 95 %."""
    sets = list(dict.fromkeys(fits.data))
    rows = []
    for variant in dict.fromkeys(fits.variant):
        if variant != baseline:
            pairs = ([_repeats(fits, data, name) for name in (variant, baseline)] for data in sets)
            rows.append([variant, *(_gain(*pair, digits, less_is_better) for pair in pairs)])
    return _markdown([first, *(DATA.get(name, name) for name in sets)], rows)


def _gain(variant: dict[str, float], baseline: dict[str, float], digits: int, less_is_better: bool) -> str:
    found = paired(variant, baseline, less_is_better=less_is_better)
    if not found.count:
        return ""
    shown = f"{found.gain:+.{digits}f}"
    if math.isnan(found.low):
        return f"{shown}, one pair"
    shown = f"{shown} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{shown}**" if found.low > 0 or found.high < 0 else shown


def defaults() -> str:
    """Return test RMSE of what a table gets without a configuration, beside scikit-learn's models."""
    fits = _read("regression_defaults")
    others = ["Gaussian process", "gradient boosting", "histogram boosting"]
    rows, ratios = [], []
    for table in sorted(set(fits.table)):
        wide = fits[fits.table == table].pivot(index="split", columns="model", values="rmse").dropna()
        average = wide.mean()
        ratios.append(average["ours"] / average[others].min())
        shown = [f"{average[model]:.3g}" for model in ("ours", *others)]
        rows.append([DATA[table], str(len(wide)), *shown, f"{ratios[-1]:.2f}"])
    rows.append(["median", "", "", "", "", "", f"{np.median(ratios):.2f}"])
    return _markdown(["table", "splits", "ours", *others, "ours / best of them"], rows)


def translation() -> str:
    """Return what whole trainings of translation reached on their test sentences."""
    rows = [
        [
            {"multi30k": "Multi30k"}.get(row.corpus, row.corpus),
            row.attention if row.attention == "DotProduct" else f"{row.attention}, p = {_exponent(row.p)}",
            f"{row.updates:,}",
            f"{row.bleu:.1f}",
            f"{row.chrf:.1f}",
            "" if math.isnan(row.exact_match) else f"{100 * row.exact_match:.1f} %",
            "" if pd.isna(row.minutes) else f"{row.minutes:.0f}",
        ]
        for row in _read("translation").itertuples()
    ]
    return _markdown(["corpus", "attention", "updates", "BLEU", "chrF", "exact", "minutes"], rows)


def speed() -> str:
    """Return the time of backends, forward and backward, as multiples of PyTorch's fused attention in the same run."""
    methods = ["chunked", "linear", "dense", "authors"]
    rows = []
    for (causal, n, samples), group in _read("attention").groupby(["causal", "n", "samples"]):
        times = group.set_index("method")
        ratios = [f"{times.ratio[name]:.2f}" if name in times.index else "" for name in methods]
        length = f"{n:,}, causal" if causal else f"{n:,}"
        rows.append([length, str(samples), f"{times.both_ms['sdpa']:,.0f}", *ratios])
    return _markdown(["tokens", "M", "SDPA, ms", *methods[:-1], "authors' formula"], rows)


def brief() -> str:
    """Return the gains of IKANDirect, the default of our learned kernels, over the usual attention, in one table."""
    rows: list[list[str]] = []

    def add(
        task: str,
        fits: pd.DataFrame,
        digits: int,
        less_is_better: bool,
        baseline: str = "DotProduct",
        variant: str = "IKANDirect",
    ) -> None:
        for data in dict.fromkeys(fits.data):
            pair = [_repeats(fits, data, name) for name in (variant, baseline)]
            shared = [repeat for repeat in pair[0] if repeat in pair[1]]
            if len(shared) >= FEWEST_PAIRS:
                ours, usual = (f"{np.mean([found[repeat] for repeat in shared]):.{digits}f}" for found in pair)
                gain = _gain(*pair, digits, less_is_better)
                rows.append([f"{DATA.get(data, data)}, {task}", str(len(shared)), usual, ours, gain])

    add("RMSE", regression(), 2, True)
    add("accuracy in %", text(), 1, False)
    add("accuracy in %, pretrained encoder", pretrained(), 1, False)
    add("loss after 1,200 updates", short_translation(), 3, True, variant="IKANDirect, p = learned")
    add("accuracy in %", nodes(), 2, False, "GATConv", "softmax")
    return _markdown(["data", "pairs", "usual attention", "learned kernel", "gain, 95 % interval"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "brief": brief,
    "regression": lambda: means(regression(), 2, less_is_better=True, first="attention"),
    "regression-gains": lambda: gains(regression(), 2, "DotProduct", less_is_better=True, first="over DotProduct"),
    "regression-defaults": defaults,
    "text": lambda: means(text(), 1, less_is_better=False, first="attention"),
    "text-gains": lambda: gains(text(), 1, "DotProduct", less_is_better=False, first="over DotProduct"),
    "pretrained": lambda: means(pretrained(), 1, less_is_better=False, first="attention"),
    "pretrained-gains": lambda: gains(pretrained(), 1, "DotProduct", less_is_better=False, first="over DotProduct"),
    "translation": translation,
    "translation-short": lambda: means(short_translation(), 3, less_is_better=True, first="attention"),
    "translation-short-gains": lambda: gains(
        short_translation(), 3, "DotProduct", less_is_better=True, first="over DotProduct"
    ),
    "nodes": lambda: means(nodes(), 2, less_is_better=False, first="convolution"),
    "nodes-gains": lambda: gains(nodes(), 2, "GATConv", less_is_better=False, first="over GATConv"),
    "speed": speed,
}


def filled(page: str) -> str:
    """Return the text of a page with its tables as the results have them.

    Args:
        page: The text, with the tables that it has now.

    Raises:
        ValueError: If it names a table that there is not.
    """

    def table(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"there is no table {found[2]!r}; known are {', '.join(TABLES)}")
        return f"{found[1]}\n{TABLES[found[2]]()}\n"

    return TABLE.sub(table, page)


def _read(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"{name}.csv", dtype={"p": str})


def _tidy(fits: pd.DataFrame, *, variant: str, repeat: str, value: str) -> pd.DataFrame:
    """Return the columns data, variant, repeat (text) and value."""
    tidy = fits.rename(columns={variant: "variant", repeat: "repeat", value: "value"})
    return tidy.assign(repeat=tidy["repeat"].astype(str))[["data", "variant", "repeat", "value"]]


def _repeats(fits: pd.DataFrame, data: str, variant: str) -> dict[str, float]:
    """Return what was measured of a variant on a data set, by repeat."""
    measured = fits[(fits.data == data) & (fits.variant == variant)]
    return measured.set_index("repeat")["value"].to_dict()


def _exponent(p: str) -> str:
    return p.removesuffix(".0")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(re.sub(" +", " ", f"| {' | '.join(cells)} |") for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page differs")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        page = (ROOT / name).read_text(encoding="utf-8")
        new = filled(page)
        if new != page:
            stale.append(name)
            if not check:
                write_output(ROOT / name, new.encode())
    if stale:
        print(f"{'other tables than the results have' if check else 'written'}: {', '.join(stale)}")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
