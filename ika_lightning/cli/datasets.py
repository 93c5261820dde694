"""``python -m ika_lightning datasets``: the data sets that are known by name, and what of them is on this computer."""

import argparse
import textwrap

from ika_lightning.data.datasets import DATASETS
from ika_lightning.data.download import data_root

__all__ = ["list_datasets"]


def list_datasets(args: list[str]) -> None:
    """Print every data set: its name, whether it is here, what it is, its licence and the figure to expect.

    Args:
        args: The words after ``datasets``: ``--root DIR`` to look there instead of where trainings look.

    Raises:
        SystemExit: With 2 after an unknown option.
    """
    parser = argparse.ArgumentParser(
        "python -m ika_lightning datasets",
        description="List the data sets that are known by name, and which of them are on this computer.",
        epilog="example: python -m ika_lightning datasets --root data",
        allow_abbrev=False,
    )
    parser.add_argument("--root", help="Folder of the data sets; by default IKA_DATA, else the user's cache folder.")
    root = parser.parse_args(args).root
    print(f"looked for under {data_root(root)}; give one as --data.name NAME")
    for task in dict.fromkeys(dataset.task for dataset in DATASETS.values()):
        print(f"\n{task}")
        for name, dataset in sorted(DATASETS.items()):
            if dataset.task == task:
                about = "; ".join(filter(None, (dataset.title, f"licence: {dataset.licence}", dataset.figure)))
                head = f"  {name:<20}{dataset.on_disk(root):<24}"
                print(textwrap.fill(about, width=120, initial_indent=head, subsequent_indent=" " * len(head)))
