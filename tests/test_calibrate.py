"""Prices of a machine: measured, written, read back, and what is no file of prices refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ika_lightning.attention import kernel_attention
from ika_lightning.attention.backends import BACKENDS, calibration, choose
from ika_lightning.attention.backends import prices as module
from ika_lightning.attention.backends.calibration import _calls, _least_squares
from ika_lightning.attention.backends.prices import prices, read_prices, shipped_prices
from ika_lightning.cli import main

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The user's file, which is not there yet, and is read anew."""
    file = tmp_path / "settings" / "prices.json"
    monkeypatch.setattr(module, "user_file", lambda: file)
    monkeypatch.setattr("ika_lightning.cli.calibrate.user_file", lambda: file)
    module._read_once.cache_clear()
    yield file
    module._read_once.cache_clear()


def test_what_is_measured_is_what_is_chosen_by(file, capsys) -> None:
    assert prices(CPU) == shipped_prices(CPU)
    file.parent.mkdir()
    card = {"A card": dict.fromkeys(shipped_prices(torch.device("cuda")), 1.5)}
    file.write_text(json.dumps(card))
    main(["calibrate", "--device", "cpu", "--longest", "32"])
    out = capsys.readouterr().out
    assert out.count("dense ") >= 8
    assert str(file) in out.splitlines()[-1]
    written = read_prices(file)
    assert written["A card"] == card["A card"]
    assert written["cpu"] != shipped_prices(CPU)
    module._read_once.cache_clear()
    assert prices(CPU) == written["cpu"]


def test_auto_takes_what_is_cheapest_at_the_users_prices(file) -> None:
    call = next(_calls(CPU, [5]))
    assert choose(call).name == "dense"
    file.parent.mkdir()
    file.write_text(json.dumps({"cpu": shipped_prices(CPU) | {"dense call": 1e15, "chunked call": 0.0}}))
    module._read_once.cache_clear()
    assert choose(call).name == "chunked"
    module._read_once.cache_clear()
    tensors = torch.randn(3, 5, 4)
    compiled = torch.compile(lambda x: kernel_attention(*x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tensors), kernel_attention(*tensors, backend="chunked"), rtol=0, atol=0)


GOOD = dict(shipped_prices(CPU))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "this is no JSON"),
        ("[1]", "an object with a device"),
        ('{"cpu": 3}', "'cpu' must have a price for each of dense entry"),
        (json.dumps({"cpu": {"dense entry": 1}}), "'cpu' must have a price for each of dense entry"),
        (json.dumps({"cpu": GOOD | {"more": 1}}), "'cpu' must have a price for each of dense entry"),
        (json.dumps({"A card": GOOD}), "'A card' must have a price for each of dense entry.*fused call"),
        (json.dumps({"cpu": GOOD | {"product": -1}}), "'product' must be a number of at least 0, got -1"),
        (json.dumps({"cpu": GOOD | {"product": float("nan")}}), "'product' must be a number of at least 0, got nan"),
        (json.dumps({"cpu": GOOD | {"product": True}}), "'product' must be a number of at least 0, got True"),
        (json.dumps({"cpu": GOOD | {"product": "1"}}), "'product' must be a number of at least 0, got '1'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(file, content, reason, capsys) -> None:
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(
        ValueError, match=f"prices.json: .*{reason}.*; delete it, and python -m ika_lightning calibrate"
    ):
        prices(CPU)
    with pytest.raises(SystemExit):
        main(["calibrate", "--device", "cpu", "--longest", "32"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert file.read_text() == content


def test_what_is_no_file_is_refused_in_one_line(file, capsys) -> None:
    file.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"prices.json: it cannot be read \(.+\); delete it, and python"):
        prices(CPU)
    with pytest.raises(SystemExit):
        main(["calibrate", "--device", "cpu", "--longest", "32"])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_a_home_that_is_not_ones_own_has_no_file(file, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    assert prices(CPU) == shipped_prices(CPU)


def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, capsys) -> None:
    blocked = tmp_path / "a file"
    blocked.touch()
    monkeypatch.setattr("ika_lightning.cli.calibrate.calibrate", lambda *_: pytest.fail("it was measured"))
    for output in (blocked / "prices.json", tmp_path):
        with pytest.raises(SystemExit):
            main(["calibrate", "--device", "cpu", "--output", str(output)])
        printed = capsys.readouterr()
        assert printed.out == ""
        assert str(blocked if output == blocked / "prices.json" else output) in printed.err
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--device", "abacus"], "--device abacus: "),
        (["--device", "meta"], "--device must be cpu or cuda, got meta"),
        (["--longest", "31"], "--longest must be at least 32, got 31"),
        (["--longest", "many"], "invalid int value"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, reason, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main(["calibrate", *options])
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert reason in printed.err
    assert printed.err.count("\n") == 1


def test_prices_that_fit_are_found_and_none_is_negative() -> None:
    rows = torch.rand(11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([3.0, 0.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close(_least_squares(rows, rows @ right), right, rtol=1e-9, atol=1e-9)
    found = _least_squares(rows, rows @ torch.tensor([3.0, -1.0, 5.0], dtype=torch.float64))
    assert found.min() == 0.0
    assert found[1] == 0.0


@pytest.mark.parametrize("backend", ["dense", "chunked", "linear", "fused"])
def test_costs_are_sums_of_products_of_one_price_each(backend) -> None:
    device = torch.device("cuda" if backend == "fused" else "cpu")
    table = shipped_prices(device)
    for call in _calls(CPU, [37]):
        if backend == "fused":
            call = _OnCuda(**vars(call))
        if BACKENDS[backend].refuses(call) is not None and backend != "fused":
            continue
        fixed, each = calibration._terms(BACKENDS[backend], call, list(table))
        total = fixed + sum(x * price for x, price in zip(each, table.values(), strict=True))
        assert total == pytest.approx(BACKENDS[backend].cost(call, table))
        assert any(each)


class _OnCuda(calibration.Call):
    device = torch.device("cuda")
