"""How long files take to read, and how much memory.

    python benchmarks/reading.py

writes a table of a million rows and ten columns and a million labelled texts into a temporary folder, and reads each in
a process of its own: read only, and split and encoded as for a training. It prints the time by the clock, that of the
processor, and the most memory that the process had, with the half GiB of its libraries.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CASES = {
    "table, read": "from ika_lightning.data.table import read_table; read_table({table!r})",
    "table in quotes, read": "from ika_lightning.data.table import read_table; read_table({quoted!r})",
    "table, encoded": "from ika_lightning.data import RegressionData; "
    "RegressionData(path={table!r}, target='c9').setup('fit')",
    "lines, read": "from ika_lightning.data.files import read_lines; read_lines({lines!r})",
    "labelled texts, read": "from ika_lightning.data.labelled import read_labelled; read_labelled({texts!r})",
    "labelled texts in quotes, read": "from ika_lightning.data.labelled import read_labelled; read_labelled({csv!r})",
}
# What a case measures: the import of the package is not part of reading, its memory is.
MEASURE = """
import resource, time
import ika_lightning.data
start, busy = time.perf_counter(), time.process_time()
{code}
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.perf_counter() - start, time.process_time() - busy, most / 2**20)
"""


def write(folder: Path, rows: int) -> dict[str, str]:
    files = {name: str(folder / name) for name in ("table.csv", "quoted.csv", "lines.txt", "texts.tsv", "csv.csv")}
    values = np.random.default_rng(0).standard_normal((rows, 10))
    with open(files["table.csv"], "w") as table, open(files["quoted.csv"], "w") as quoted:
        for file in (table, quoted):
            file.write(",".join(f"c{column}" for column in range(10)) + "\n")
        for row in values:
            cells = [f"{value:.5f}" for value in row]
            table.write(",".join(cells) + "\n")
            quoted.write(f'"{cells[0]}",' + ",".join(cells[1:]) + "\n")
    with (
        open(files["lines.txt"], "w") as lines,
        open(files["texts.tsv"], "w") as texts,
        open(files["csv.csv"], "w") as csv,
    ):
        for row in range(rows):
            text = f"this is text number {row}, which is as long as a sentence of a review usually is"
            lines.write(f"{text}\n")
            texts.write(f"{'abc'[row % 3]}\t{text}\n")
            csv.write(f'{"abc"[row % 3]},"{text}"\n')
    return {Path(file).stem: file for file in files.values()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        files = write(Path(folder), rows)
        print(f"{rows} rows, written in {time.perf_counter() - start:.0f} s")
        for name, code in CASES.items():
            command = [sys.executable, "-c", MEASURE.format(code=code.format(**files))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, busy, memory = map(float, done.stdout.split()[-3:])
            print(f"{name:<32}{seconds:6.1f} s{busy:6.1f} s of the processor{memory:7.2f} GiB")


if __name__ == "__main__":
    main()
