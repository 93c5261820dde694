"""The benchmarks start, and what they compute besides times is right."""

import os
import runpy
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_encoders import write_encoder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Run a benchmark's file without its main, as a namespace."""

    def load(name: str) -> SimpleNamespace:
        return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="benchmark"))

    return load


def test_speed_of_regression(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["regression_speed.py", "--rows", "31", "--repeats", "1"])
    runpy.run_path(str(ROOT / "benchmarks" / "regression_speed.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert sum("MIKAN" in line for line in lines) == 3
    assert [line.split()[-1] for line in lines if "DotProduct " in line] == ["1.00"] * 3


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install '.[gpu]'")
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_fused_kernels_compile_without_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "fused_resources.py"), "--tiny"]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("sm_80 forward 0 16 16 bf16")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install '.[gpu]'")
def test_tiles_are_tried_out_on_a_cpu() -> None:
    # the interpreter is chosen as Triton is imported, so by the environment of a process
    command = [sys.executable, str(ROOT / "benchmarks" / "fused_tiles.py"), "--tiny"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    first, *passes = done.stdout.splitlines()
    assert first.endswith("6 fit")
    assert [line.partition(",")[0] for line in passes] == ["forward", "query gradient", "key gradient"]


def test_gpu_is_tried_out_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for what, written in (("attention", "features: linear"), ("training", "KernelGATConv")):
        words = ["gpu.py", "--device", "cpu", "--tiny", "--what", what, "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
        assert written in capsys.readouterr().out
        for kind in ("csv", "md"):
            table = (tmp_path / "cpu" / f"{what}.{kind}").read_text()
            assert written in table
            assert "no time left" not in table


def test_gpu_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    words = ["gpu.py", "--device", "cpu", "--tiny", "--seconds", "0", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
    assert capsys.readouterr().out.count("no time left") == 2
    assert "out of time" in (tmp_path / "cpu" / "tests.md").read_text()


class TestGpuThatIsCutOff:
    """Two parts, of which the first is cut off in its second row."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, load):
        benchmark = load("gpu")

        def run(second, *words: str) -> tuple[int, str, str]:
            def first_part(machine, clock):
                yield {"method": "first", "both ms": 1.5}
                second()
                yield {"method": "second", "both ms": 2.5}

            def second_part(machine, clock):
                yield {"tests": "all passed"}

            parts = {"attention": (first_part, 0.5), "tests": (second_part, 0.5)}
            monkeypatch.setitem(benchmark.main.__globals__, "PARTS", parts)
            monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--output", str(tmp_path), *words])
            try:
                benchmark.main()
                code = 0
            except SystemExit as end:
                code = end.code
            return code, capsys.readouterr().out, (tmp_path / "cpu" / "attention.csv").read_text()

        return run

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
    def test_by_a_signal(self, name, run, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGTERM)
        code, out, table = run(lambda: signal.raise_signal(getattr(signal, name)))
        assert code == 1
        assert f"remark=stopped here: {name}" in out
        assert f"written: {tmp_path / 'cpu'}" in out.splitlines()[-1]
        assert table == f"method,both ms,remark\nfirst,1.5,\n,,stopped here: {name}\n"
        assert not (tmp_path / "cpu" / "tests.csv").exists()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_by_the_end_of_its_time(self, run, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang() -> None:
            for _ in range(1000):
                time.sleep(0.01)

        code, _, table = run(hang, "--seconds", "-9.9")
        assert code == 0
        assert table.endswith("stopped here: out of time\n")

    def test_by_nothing(self, run) -> None:
        code, _, table = run(lambda: None)
        assert code == 0
        assert table == "method,both ms\nfirst,1.5\nsecond,2.5\n"


def test_what_fails_on_a_gpu_is_a_remark_and_the_rest_goes_on(load, tmp_path: Path, monkeypatch, capsys) -> None:
    benchmark = load("gpu")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this card\nand a long story")

    monkeypatch.setitem(benchmark.main.__globals__, "authors_formula", fail)
    words = ["gpu.py", "--device", "cpu", "--tiny", "--what", "attention", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        benchmark.main()
    assert end.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("failed: 2")
    assert sum("remark=failed: RuntimeError: no kernel for this card" in line for line in lines) == 2
    assert sum("method=dense" in line and "ratio=" in line for line in lines) == 2


def test_tests_on_a_gpu_that_hang_are_ended(load, monkeypatch) -> None:
    benchmark = load("gpu")
    hanging = [sys.executable, "-c", "import time; print('collected', flush=True); time.sleep(60)"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(hanging, **options))
    began = time.monotonic()
    (row,) = benchmark.run_tests(benchmark.Machine("cpu", True), benchmark.Clock(0.5))
    assert time.monotonic() - began < 30
    assert row["remark"] == "out of time"


def test_speed_of_texts(benchmark_root, monkeypatch, capsys) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        ["text_speed.py", "--data", "mr", "--batches", "2", "--repeats", "1", "--root", str(benchmark_root)],
    )
    runpy.run_path(str(ROOT / "benchmarks" / "text_speed.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["DotProduct", "IKANDirect", "IKAN", "MIKAN"]
    assert lines[2].endswith(" 1.00 |")


def test_peak_memory_is_that_of_the_call(load) -> None:
    benchmark = load("attention")
    case = benchmark.Case(n=1021, samples=2, d=3, heads=2)
    options = SimpleNamespace(device="cpu", dtype="float32")
    dense, chunked = (benchmark.peak_memory(case, method, options) for method in ("dense", "chunked"))
    one_matrix = 2 * 1021**2 * 4 / 2**20
    assert 2 * one_matrix < dense < 20 * one_matrix
    assert chunked < dense


def test_methods_of_the_attention_benchmark_agree(load) -> None:
    import torch

    benchmark = load("attention")
    for causal in (False, True):
        case = benchmark.Case(n=37, samples=5, d=11, heads=3, causal=causal)
        drawn, frequencies = benchmark.inputs(case, "cpu", torch.float64)
        expected = benchmark.call("authors", case, *drawn, frequencies)
        torch.testing.assert_close(benchmark.call("dense", case, *drawn, frequencies), expected, rtol=1e-4, atol=1e-4)
        assert benchmark.call("sdpa", case, *drawn, frequencies).shape == expected.shape


def test_speed_of_translation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--width 8 --depth 1 --heads 2 --samples 3 --vocabulary 31 --batch 2 --beam 2 --length 6 --source_length 5"
    words = ["translation_speed.py", "--repeats", "1", "--batch_tokens", "20", *sizes.split()]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(ROOT / "benchmarks" / "translation_speed.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert sum("MIKAN" in line for line in lines) == 3
    (dot,) = [line for line in lines if line.startswith("| DotProduct |")]
    assert dot.split(" | ")[2] == "1.00"


def test_defaults_of_regression_are_fitted_once_and_set_beside_the_better_of_the_others(
    load, tmp_path, monkeypatch, capsys
) -> None:
    benchmark, done = load("regression_defaults"), []
    others = dict(zip(benchmark.OTHERS, (4.0, 5.0, 2.0), strict=True))

    def ours(table: str, split: int, options: list[str]) -> tuple[float, float | None]:
        done.append((table, split))
        # of one split, too few rows for an interval
        return 2.0 + split, None if split == 1 else 0.875

    names = benchmark.measure.__globals__
    monkeypatch.setitem(names, "RESULTS", tmp_path / "defaults.csv")
    monkeypatch.setitem(names, "ours", ours)
    monkeypatch.setitem(names, "other", lambda model, table, split: (others[model], 0.5))
    for _ in range(2):
        for split in range(3):
            # of the last split, one is missing yet
            for model in ("ours", *benchmark.OTHERS)[: 4 if split < 2 else 3]:
                benchmark.measure("table", split, model, [])
    assert done == [("table", 0), ("table", 1), ("table", 2)]
    benchmark.report(3)
    assert "| table | 2 | 2.5 | 4 | 5 | 2 | 1.25 | 0.875 |" in capsys.readouterr().out.splitlines()


def test_speed_of_graphs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--nodes", "101", "--edges", "211", "--samples", "3", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["graph_speed.py", *small])
    monkeypatch.delenv("IKA_DATA", raising=False)
    benchmark = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "graph_speed.py"), run_name="benchmark"))
    monkeypatch.setitem(benchmark.main.__globals__, "cora", lambda root: benchmark.drawn(37, 101, 11))
    monkeypatch.setitem(benchmark.main.__globals__, "peak_memory", lambda name, arguments: 1.5)
    benchmark.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    ratios = {(case, conv): rest[4] for case, conv, *rest in lines[2:] if conv == "GATConv"}
    assert ratios == {("cora", "GATConv"): "1.00", ("large", "GATConv"): "1.00"}
    assert [line[0] for line in lines if line[1] == "copula"] == ["cora", "large"]


@pytest.mark.slow
def test_peak_memory_of_graphs(load) -> None:
    """The graph of the benchmark, with a tenth of its edges, in a process of its own."""
    benchmark = load("graph_speed")
    arguments = SimpleNamespace(nodes=100_000, edges=100_000, samples=32)
    assert 200 < benchmark.peak_memory("direct", arguments) < 4096


def test_the_page_of_pictures_shows_what_is_made_for_it(load) -> None:
    benchmark = load("pictures")
    made = {f"{name}.png" for shown in benchmark.SHOWN.values() for name in shown.values()}
    assert made == {file.name for file in (ROOT / "docs" / "pictures").iterdir()}
    assert all(f"(pictures/{name})" in (ROOT / "docs" / "pictures.md").read_text() for name in made)


class TestPretrained:
    @pytest.fixture
    def quick(self, load, tmp_path, monkeypatch):
        """The benchmark with a configuration of one step."""
        benchmark = load("pretrained")
        folder = tmp_path / "configs" / "text_classification"
        folder.mkdir(parents=True)
        config = yaml.safe_load((ROOT / "configs" / "text_classification" / "trec_minilm.yaml").read_text())
        config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1}
        config["data"]["init_args"]["max_length"] = 19
        (folder / "trec_minilm.yaml").write_text(yaml.safe_dump(config))
        for function in (benchmark.build, benchmark.known, benchmark.measure_all):
            monkeypatch.setitem(function.__globals__, "HERE", tmp_path / "benchmarks")
            monkeypatch.setitem(function.__globals__, "RESULTS", tmp_path / "results" / "pretrained.csv")
        return benchmark

    @pytest.mark.filterwarnings("ignore:.* of the .* texts")
    def test_a_fit_is_measured_once(self, quick, benchmark_root, tmp_path, monkeypatch, capsys):
        encoder = str(write_encoder(tmp_path / "encoder"))
        fits = [quick.Fit("trec", attention, 0) for attention in quick.ATTENTIONS]
        results = quick.measure_all(fits, encoder, str(benchmark_root))
        for fit, measured in results.items():
            assert measured.val_accuracy * 5.45 == pytest.approx(round(measured.val_accuracy * 5.45), abs=1e-3)
            assert measured.test_accuracy * 5 == pytest.approx(round(measured.test_accuracy * 5), abs=1e-3)
            assert measured.minutes > 0 and fit in fits
        monkeypatch.setitem(quick.measure_all.__globals__, "measure", None)
        assert quick.measure_all(fits, encoder, str(benchmark_root)) == results
        quick.show(results, fits)
        assert "| trec | IKANDirect | " in capsys.readouterr().out
