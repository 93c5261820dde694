"""``calibrate``: measure what attention costs on this machine, for ``backend="auto"`` to choose by."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NoReturn

import torch

from ika_lightning.attention.backends.calibration import LENGTHS, calibrate
from ika_lightning.attention.backends.prices import device_name, read_prices, user_file
from ika_lightning.cli.explain import UsageError
from ika_lightning.output import check_output, write_output


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try: {self.prog} --help")


def run(args: list[str]) -> None:
    """Measure the prices of a device and put them beside those of others into the user's file.

    Args:
        args: The options.

    Raises:
        UsageError: If an option is wrong, or there is no such device.
        ValueError: If there is a file that is not one of prices.
        OSError: If the file cannot be written.
    """
    parser = _Parser(
        prog="python -m ika_lightning calibrate",
        description='Measure what attention costs on this machine: what backend="auto" chooses by, in a minute or two.',
        epilog="example: python -m ika_lightning calibrate --device cpu --longest 1024",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda or cuda:1 (default: %(default)s)")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="most queries and keys (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=user_file(), help="file of prices (default: %(default)s)")
    options = parser.parse_args(args)
    if options.longest < LENGTHS[0]:
        raise UsageError(f"--longest must be at least {LENGTHS[0]}, got {options.longest}")
    device = _device(options.device)
    # what is wrong with the file is said before the work
    options.output.parent.mkdir(parents=True, exist_ok=True)
    check_output(options.output)
    tables = read_prices(options.output) if options.output.is_file() else {}
    tables[device_name(device)] = calibrate(
        device, [length for length in LENGTHS if length <= options.longest], lambda line: print(line, flush=True)
    )
    write_output(options.output, (json.dumps(tables, indent=2) + "\n").encode())
    for name, price in tables[device_name(device)].items():
        print(f"{name:<32}{price:12.4g}")
    print(f"prices of {device_name(device)}: {options.output}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, got {name}")
    return device
