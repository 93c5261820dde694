"""Fused attention where no GPU is at hand: what it says of itself, and its kernels by Triton's interpreter."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from definition import inputs

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import fused
from ika_lightning.attention.backends.fused_launch import PASSES, WIDEST, Widths, tile_for

RESOURCES = Path(__file__).parents[3] / "benchmarks" / "results" / "fused_resources.csv"

with_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install '.[gpu]'")


@pytest.mark.first
@with_triton
def test_kernels_compute_what_the_reference_does() -> None:
    """In a process of its own: Triton asks once whether to interpret, and then does so for all that is compiled."""
    file = Path(__file__).with_name("interpreted_fused.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_it_refuses_other_devices() -> None:
    parts = {name: x.float() for name, x in inputs("both").items()}
    with pytest.raises(ValueError, match="backend 'fused' serves calls on CUDA devices, not on 'cpu'; take 'auto'"):
        kernel_attention(**parts, backend="fused")


def test_where_triton_is_missing_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "HAS_TRITON", False)

    class OnCuda(fused.Call):
        device = torch.device("cuda")

    parts = {name: x.float() for name, x in inputs("both").items()}
    mask = fused.Mask()
    call = OnCuda(*(parts[name] for name in ("query", "key", "query_features", "key_features", "value")), None, mask,
                  0.0, 1e-5, False)  # fmt: skip
    assert fused.Fused().refuses(call) == "needs Triton: pip install 'ika-lightning[gpu]'"


def test_the_table_of_resources_is_of_these_tiles() -> None:
    with RESOURCES.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["arch"], row["pass"]) for row in rows} == {
        (arch, name) for arch in ("sm_80", "sm_90") for name in PASSES
    }
    for row in rows:
        widths = Widths(*(int(row[name]) for name in ("d", "R", "e")))
        tile = tile_for(row["pass"], widths, 4 if row["dtype"] == "fp32" else 2, int(row["arch"][3:]))
        assert [int(row[name]) for name in ("rows", "columns", "warps", "stages")] == list(astuple(tile)), row
        # on sm_90 tiles are chosen by time, see below
        assert row["dtype"] == "fp32" or row["arch"] == "sm_90" or row["spills"] == "0", row


def test_tiles_of_hopper_are_the_fastest_that_were_timed() -> None:
    with (RESOURCES.parent / "gpu" / "nvidia-h200" / "tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in PASSES:
        for features in (32, 64, 128):
            timed = [row for row in rows if (row["pass"], row["R"]) == (name, str(features))]
            fastest = min(timed, key=lambda row: float(row["ms"]))
            tile = tile_for(name, Widths(64, features, 64), 2, arch=90)
            assert [int(fastest[name]) for name in ("rows", "columns", "warps", "stages")] == list(astuple(tile))


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", PASSES)
def test_there_is_a_tile_for_all_widths(kernel, itemsize) -> None:
    for widths in (Widths(16, 0, 16), Widths(3, 65, 16), Widths(0, 256, 64), Widths(128, 128, WIDEST - 256)):
        for arch in (80, 90):
            tile = tile_for(kernel, widths, itemsize, arch)
            assert tile.rows * tile.columns >= 256
            assert all(size >= 16 and size & (size - 1) == 0 for size in (tile.rows, tile.columns))
