"""``export``: what leaves the package answers as it does inside, from the raw data that a stranger has."""

import csv
import functools
import gc
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_encoders import write_encoder
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch_geometric.nn import GATConv

import ika_lightning.cli.export
import ika_lightning.tasks.uncertainty
from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, ExplicitKernel, IKANDirect, MultiheadAttention
from ika_lightning.attention.graph import KernelGATConv, KernelTransformerConv
from ika_lightning.cli import main
from ika_lightning.cli.explain import UsageError
from ika_lightning.cli.export import FORMATS, load_program, trace
from ika_lightning.models import EncoderDecoder, GraphNetwork, RowTransformer, SpectralDraws, TextClassifier
from ika_lightning.models.inference import ContextRegressor, NextTokens, NodeProbabilities, TextProbabilities
from ika_lightning.protocols import Exports, Program

DOCS = (Path(__file__).parents[1] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
READERS = dict(zip(("pt2", "onnx", "rows", "texts", "graph", "sentence"), BLOCKS, strict=True))
# A process in which the package cannot be imported, nor what it is made with. It stays, as importing PyTorch takes
# longer than all the rest, and runs one script after another, each with names of its own.
ALONE = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("ika_lightning", "lightning", "torch_geometric", {more}):
            raise ImportError(f"{{name}} is not there")
sys.meta_path.insert(0, Refuse())
import json
import os
import traceback
import numpy as np
for line in sys.stdin:
    folder, script, raw, result = json.loads(line)
    os.chdir(folder)
    names = {{"__name__": "__main__", "np": np, "raw": raw}}
    try:
        exec(script, names)
        answer = {{"result": names[result]}}
    except BaseException:
        answer = {{"error": traceback.format_exc()}}
    print(json.dumps(answer, default=lambda x: x.tolist()), flush=True)
"""
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]
SMALL = ["--trainer.max_epochs", "1", "--pictures", "0"]
NARROW = ["--model.width", "16", "--model.num_heads", "2", "--model.depth", "1"]
# of a few tokens, so that some are cut
pytestmark = pytest.mark.filterwarnings("ignore:.* of the .* texts")
ATTENTIONS: dict[str, Callable[..., MultiheadAttention]] = {
    "DotProduct": DotProduct,
    "RBF": functools.partial(RBF, p=1.5),
    "ExplicitKernel": ExplicitKernel,
    "IKANDirect": functools.partial(IKANDirect, num_samples=5),
    "IKANDirect, rbf": functools.partial(IKANDirect, num_samples=5, init="rbf"),
    "IKAN": functools.partial(IKAN, num_samples=5, stationary=True),
    "MIKAN": functools.partial(MIKAN, num_samples=5, p="learned"),
}


# --- Whole commands, and readers that have nothing of the package -----------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each task, whose training data is gone."""
    with chdir(tmp_path_factory.mktemp("trained")):
        cells = (["7", "red"], [" -3.5e0", "blue "], ["NA", "green"], ["1e2", ""], [".25", "red"])
        rows = [f"{cells[i % 5][0]},{i},{cells[i % 5][1]},{1e6 + i * i % 7}\n" for i in range(40)]
        Path("rows.csv").write_text("a,b,colour,price\n" + "".join(rows))
        texts = [f"{'ab'[i % 2]}\t{['good', 'bad'][i % 2]} <pad> Élan 😀 {i}\n" for i in range(40)]
        Path("texts.tsv").write_text("".join(texts), encoding="utf-8")
        nodes = [f"n{i},{'xyz'[i % 3]},{i % 5},{i * i % 11}\n" for i in range(75)]
        Path("nodes.csv").write_text("node,label,f,g\n" + "".join(nodes))
        Path("edges.csv").write_text("".join(f"n{i},n{(i * i + 3) % 75},{i % 4}\n" for i in range(75)))
        for name, word in (("en.txt", "page"), ("de.txt", "Seite")):
            Path(name).write_text("".join(f"{word} {i}\n" for i in range(40)))
        data = {
            "Regression": ["--data.path", "rows.csv", "--data.target", "price", "--data.missing", "mean", *NARROW],
            "TextClassification": ["--data.path", "texts.tsv", "--data.max_length", "7", *NARROW],
            "NodeClassification": ["--data.path", "nodes.csv", "--data.edges_path", "edges.csv"],
            "Translation": ["--data.source", "en.txt", "--data.target", "de.txt", "--data.vocabulary", "280", *NARROW],
        }
        # what the other attentions of a translation are is the same to an export
        data["Translation"].append("--model.attention=DotProduct")
        for task, options in data.items():
            main(["fit", "--model", task, "--data", f"{task}Data", *options, *QUIET, *SMALL])
        texts = ["--model", "TextClassification", "--data", "TextClassificationData", *data["TextClassification"][:4]]
        encoder = str(write_encoder(Path("encoder"), "roberta"))
        main(["fit", *texts, "--model.pretrained", encoder, *QUIET, *SMALL])
        Path("away").mkdir()
        for file in [*Path().glob("*.*"), Path("encoder")]:
            file.rename(Path("away", file))
        names = {
            "Regression": "rows",
            "TextClassification": "texts",
            "NodeClassification": "nodes",
            "Translation": "en",
        }
        runs = {task: f"{names[task]}/version_0" for task in data} | {"pretrained": "texts/version_1"}
        return {name: Path(f"runs/{run}/checkpoints/best.ckpt").resolve() for name, run in runs.items()}


@pytest.fixture(scope="module", autouse=True)
def without_copies() -> Iterator[None]:
    """Let the copies of classes that tracing makes, of the same names, be gone before another file names a class."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def export(checkpoint: Path, output: str, *options: str) -> None:
    main(["export", *QUIET, "--ckpt_path", str(checkpoint), "--output", output, *options])


def predict(checkpoint: Path, *options: str) -> list[dict[str, str]]:
    main(["predict", *QUIET, "--ckpt_path", str(checkpoint), "--output", "predictions.csv", *options])
    with Path("predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, str]]:
    """A folder with the files of a checkpoint, made when they are first asked for, and what was printed."""
    traced: dict[str, ExportedProgram] = {}

    def trace_once(name: str, program: Program) -> ExportedProgram:
        if name not in traced:
            traced[name] = trace(program)
        return traced[name]

    @functools.cache
    def make(name: str, suffix: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp("exported")
        with pytest.MonkeyPatch.context() as patch, chdir(folder), redirect_stdout(io.StringIO()) as printed:
            # what takes longest is done once for both formats, in which the operations are the same
            patch.setattr(ika_lightning.cli.export, "trace", functools.partial(trace_once, name))
            export(trained[name], f"model.{suffix}")
        return folder, printed.getvalue()

    return make


def copy_here(exported: tuple[Path, str]) -> str:
    """Put exported files into the folder of the test, and return what was printed of them."""
    shutil.copytree(exported[0], Path(), dirs_exist_ok=True)
    return exported[1]


@pytest.fixture(scope="module")
def strangers() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """The process without the package that reads a format, begun when it is first asked for."""
    begun: dict[str, subprocess.Popen[str]] = {}

    def stranger(suffix: str) -> subprocess.Popen[str]:
        if suffix not in begun:
            script = ALONE.format(more='"torch"' if suffix == "onnx" else "")
            begun[suffix] = subprocess.Popen(
                [sys.executable, "-I", "-W", "error", "-W", "ignore:.*LeafSpec", "-c", script],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            )  # fmt: skip
        return begun[suffix]

    yield stranger
    for process in begun.values():
        # which ends when there are no more lines to read
        process.communicate(timeout=60)
        assert process.returncode == 0


ReadAlone = Callable[..., Any]


@pytest.fixture
def read_alone(strangers: Callable[[str], subprocess.Popen[str]]) -> ReadAlone:
    """Encode raw data and run the model as the page says, in a process without the package."""

    def read(kind: str, suffix: str, raw: Mapping[str, object], result: str = "answers") -> Any:
        run, encode = READERS[suffix], READERS[kind]
        if kind == "sentence":
            run = f"def answer(inputs):\n    {run.strip().replace(chr(10), chr(10) + '    ')}\n    return answers\n"
            encode, run = run, encode
        script = "".join(f"{name} = raw[{name!r}]\n" for name in raw)
        script += "features, ends, edge_features = map(np.array, raw.values())\n" if kind == "graph" else ""
        process = strangers(suffix)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([os.getcwd(), f"{script}{encode}\n{run}\n", raw, result]) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer["result"]

    return read


def test_a_stranger_has_nothing_of_the_package(strangers: Callable[[str], subprocess.Popen[str]]) -> None:
    for suffix, names in (
        ("pt2", ["ika_lightning", "lightning", "torch_geometric"]),
        ("onnx", ["ika_lightning", "torch"]),
    ):
        process = strangers(suffix)
        for name in names:
            process.stdin.write(json.dumps([os.getcwd(), f"import {name}", {}, "raw"]) + "\n")
            process.stdin.flush()
            assert f"ImportError: {name} is not there" in json.loads(process.stdout.readline())["error"]


def relative(suffix: str) -> float:
    """How far apart numbers may be: the rounding of sums in another order, and of other functions."""
    return 1e-6 if suffix == "pt2" else 1e-5


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_table(trained, exported, read_alone: ReadAlone, suffix: str) -> None:
    printed = copy_here(exported("Regression", suffix))
    assert printed.startswith(f"model.{suffix} and model.json: features (rows, 5) -> prediction (rows)")
    # more rows than in the example, blanks, a number and a category that are missing
    rows = [{"a": f" {i / 7}", "b": str(i), "colour": ["red", "blue", "green"][i % 3]} for i in range(17)]
    rows[3]["a"], rows[5]["colour"] = "n/a", " "
    with Path("new.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["a", "b", "colour"])
        writer.writeheader()
        writer.writerows(rows)
    wanted = [float(row["predicted_price"]) for row in predict(trained["Regression"], "--input", "new.csv")]
    answers = read_alone("rows", suffix, {"rows": rows})["prediction"]
    assert np.allclose(answers, wanted, rtol=relative(suffix) * 1e-6, atol=0) and len(set(wanted)) == 17
    assert read_alone("rows", suffix, {"rows": rows[:1]})["prediction"] == pytest.approx(wanted[:1], rel=1e-11)


@pytest.mark.parametrize("model", ["TextClassification", "pretrained"])
@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_texts(trained, exported, read_alone: ReadAlone, suffix: str, model: str) -> None:
    copy_here(exported(model, suffix))
    # a special token as text, an E with its accent apart, one token, none, and more than max_length
    texts = ["bad <pad> 😀", "E\u0301LAN good", "good", "\u200b", "one two three four bad good bad good"]
    Path("new.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    wanted = predict(trained[model], "--input", "new.txt")
    answers = read_alone("texts", suffix, {"texts": texts})
    for row, probabilities in zip(wanted, answers["probabilities"], strict=True):
        expected = [float(row["probability_a"]), float(row["probability_b"])]
        assert probabilities == pytest.approx(expected, rel=relative(suffix))
    about = json.loads(Path("model.json").read_text())
    assert about["encoding"]["classes"] == ["a", "b"] and about["encoding"]["max_length"] == 7
    assert about["inputs"][0] == {
        "name": "tokens", "dtype": "int64", "shape": ["texts", "tokens"],
        "meaning": "the ids of the tokens of each text, at least one, then padding",
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_graph(trained, exported, read_alone: ReadAlone, suffix: str) -> None:
    copy_here(exported("NodeClassification", suffix))
    features = [[i % 3, i] for i in range(13)]
    ends = [[i, (5 * i + 1) % 13] for i in range(11)]
    Path("nodes.csv").write_text("node,f,g\n" + "".join(f"m{i},{f},{g}\n" for i, (f, g) in enumerate(features)))
    Path("edges.csv").write_text("".join(f"m{i},m{j},{i}\n" for i, j in ends))
    files = ["--input", "nodes.csv", "--data.predict_edges_path", "edges.csv", "--data.undirected", "false"]
    wanted = predict(trained["NodeClassification"], *files)
    raw = {"features": features, "ends": np.array(ends).T.tolist(), "edge_features": [[i] for i, _ in ends]}
    answers = read_alone("graph", suffix, raw)
    for row, probabilities in zip(wanted, answers["probabilities"], strict=True):
        expected = [float(row[f"probability_{label}"]) for label in "xyz"]
        assert probabilities == pytest.approx(expected, rel=relative(suffix))


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_translation_by_its_next_tokens(trained, exported, read_alone: ReadAlone, suffix: str) -> None:
    printed = copy_here(exported("Translation", suffix))
    assert "note: beam search is not in it" in printed
    assert "beam search is not in it" in json.loads(Path("model.json").read_text())["note"]
    Path("new.txt").write_text("page 31\n")
    greedy = ["--input", "new.txt", "--model.beam", "1", "--output", "new.de"]
    main(["predict", *QUIET, "--ckpt_path", str(trained["Translation"]), *greedy])
    assert read_alone("sentence", suffix, {"sentence": "page 31"}, "translation") == Path("new.de").read_text().strip()


def test_the_files_hold_their_description(exported) -> None:
    import onnx

    (pt2, _), (onnx_folder, _) = exported("Regression", "pt2"), exported("Regression", "onnx")
    about = (pt2 / "model.json").read_text().rstrip()
    extra = {"description.json": ""}
    torch.export.load(pt2 / "model.pt2", extra_files=extra)
    assert extra["description.json"] == about
    properties = {each.key: each.value for each in onnx.load(onnx_folder / "model.onnx").metadata_props}
    # it says the same of both
    assert properties["description.json"] == about == (onnx_folder / "model.json").read_text().rstrip()
    # and nothing of where they were made
    root = str(Path(ika_lightning.cli.export.__file__).parents[2]).encode()
    for folder in (pt2, onnx_folder):
        files = [file.read_bytes() for file in folder.glob("model.*")]
        assert len(files) == 2 and not any(str(folder).encode() in file or root in file for file in files)


# --- Every layer, at every size ---------------------------------------------------------------------------------------


def contents(program: Program, suffixes: Sequence[str] = tuple(FORMATS)) -> dict[str, bytes]:
    """A file of each format; what takes longest, to write down the operations, is done once."""
    program.module.eval().requires_grad_(False)
    with pytest.MonkeyPatch.context() as patch:
        # the lines of code that each operation comes from, which take long to find and are thrown away
        patch.setattr(torch.fx.config, "do_not_emit_stack_traces", True)
        outputs, traced = list(program.module(**program.example)), trace(program)
    return {suffix: FORMATS[suffix].write(traced, program, outputs, "{}") for suffix in suffixes}


def check(
    program: Program, *others: Mapping[str, Tensor], exact: bool = True, suffixes: Sequence[str] = tuple(FORMATS)
) -> None:
    """Check that files answer as the module for its example and other inputs, of other sizes."""
    for suffix, content in contents(program, suffixes).items():
        answer = FORMATS[suffix].load(content)
        # the operations of a program are those of the module, one by one, but for sums over the features of edges
        near = 1e-5 if suffix == ".onnx" else 0.0 if exact else 1e-6
        for example in (program.example, *others):
            found = answer(example)
            for name, wanted in program.module(**example).items():
                assert found[name].shape == wanted.shape and found[name].dtype == wanted.dtype
                torch.testing.assert_close(
                    found[name], wanted, rtol=near, atol=near, msg=lambda text, s=suffix: s + text
                )


def shaken(net: nn.Module) -> nn.Module:
    """A network none of whose parameters is zero, as at its start."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return net


def texts(count: int, length: int) -> dict[str, Tensor]:
    tokens = torch.arange(count * length).view(count, length) % 28 + 1
    # texts of every length, one token at least
    return {"tokens": tokens.masked_fill(torch.arange(length) > torch.arange(count).unsqueeze(1) % length, 0)}


def classifier(attention: str, texts: dict[str, Tensor]) -> Program:
    """A text classifier with an attention, the same each time, and an example."""
    layer = ATTENTIONS[attention]
    if layer is not ExplicitKernel:
        # which is what is exported; there is one way alone for explicit kernels
        layer = functools.partial(layer, backend="dense")
    torch.manual_seed(0)
    net = shaken(TextClassifier(31, 3, width=8, depth=1, num_heads=2, attention=layer, pooling="attention"))
    return Program(TextProbabilities(net), texts, {"tokens": {0: "texts", 1: "tokens"}}, {}, {})


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_over_words(attention: str) -> None:
    program = classifier(attention, texts(7, 11))
    sizes = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 101), (23, 13)]
    check(program, *(texts(*size) for size in sizes))


def test_attention_over_rows() -> None:
    layer = functools.partial(MIKAN, num_samples=5, backend="dense")
    net = shaken(RowTransformer(3, width=8, depth=1, num_heads=2, attention=layer, targets=True))
    context, targets = torch.linspace(-1, 1, 69).view(23, 3).cos(), torch.linspace(-2, 2, 23)
    rows = [{"features": torch.linspace(-2, 2, 3 * count).view(count, 3)} for count in (11, 1, 2, 23, 101)]
    axes = {"features": {0: "rows"}}
    predict = ContextRegressor(net, context, targets, lambda outputs: (outputs, None), mean=1e6, std=3.0)
    program = Program(predict, rows[0], axes, {}, {})
    check(program, *rows[1:])


def test_several_draws_of_a_spectrum() -> None:
    layer = functools.partial(IKAN, num_samples=5, backend="dense")
    net = SpectralDraws(shaken(RowTransformer(3, width=8, depth=1, num_heads=2, attention=layer)).eval(), 3)
    rows = [{"features": torch.linspace(-2, 2, 3 * count).view(count, 3)} for count in (11, 1, 23)]
    believe = functools.partial(ika_lightning.tasks.uncertainty.believe, likelihood=False, mixes=1)
    predict = ContextRegressor(net, torch.linspace(-1, 1, 39).view(13, 3).cos(), None, believe, mean=1e6, std=3.0)
    program = Program(predict, rows[0], {"features": {0: "rows"}}, {}, {})
    assert (predict(**rows[0])["std"] > 0).all()
    check(program, *rows[1:])


def test_a_head_that_is_alone_and_every_place_of_a_translation() -> None:
    # with a copula over one head
    layer = functools.partial(MIKAN, num_samples=5, backend="dense")
    net = shaken(EncoderDecoder(31, 29, width=8, depth=1, num_heads=1, attention=layer))

    def inputs(sentences: int, m: int, n: int) -> dict[str, Tensor]:
        return {"source": texts(sentences, m)["tokens"], "target": texts(sentences, n)["tokens"]}

    axes = {"source": {0: "sentences", 1: "source"}, "target": {0: "sentences", 1: "target"}}
    program = Program(NextTokens(net), inputs(5, 7, 11), axes, {}, {})
    check(program, *(inputs(*sizes) for sizes in ((1, 1, 1), (1, 5, 1), (3, 1, 7), (13, 2, 17))))


CONVS: dict[str, Callable[..., nn.Module]] = {
    "KernelGATConv": functools.partial(KernelGATConv, num_samples=5),
    "KernelGATConv, copula": functools.partial(KernelGATConv, num_samples=5, spectrum="copula"),
    "KernelTransformerConv, rbf": functools.partial(KernelTransformerConv, num_samples=5, init="rbf"),
    "GATConv": GATConv,
}


@pytest.mark.parametrize("conv", list(CONVS))
def test_attention_over_edges(conv: str) -> None:
    net = shaken(GraphNetwork(5, 3, CONVS[conv], width=4, num_heads=2))

    def graph(nodes: int, edges: int) -> dict[str, Tensor]:
        ends = torch.stack([torch.arange(edges), 3 * torch.arange(edges) + 1]) % nodes
        return {"x": torch.linspace(-1, 1, 5 * nodes).view(nodes, 5).sin(), "edge_index": ends}

    program = Program(NodeProbabilities(net), graph(7, 11), {"x": {0: "nodes"}, "edge_index": {1: "edges"}}, {}, {})
    # a node alone, no edges, and more than in the example
    others = [graph(*sizes) for sizes in ((1, 1), (2, 1), (3, 0), (31, 101))]
    check(program, *others, exact="Kernel" not in conv)


def test_double_precision_over_edges() -> None:
    net = shaken(GraphNetwork(5, 3, GATConv, width=4, num_heads=2, num_edge_features=2)).double()
    ends = torch.stack([torch.arange(11), 3 * torch.arange(11) + 1]) % 7
    example = {"x": torch.linspace(-1, 1, 35).view(7, 5), "edge_index": ends, "edge_attr": torch.ones(11, 2)}
    axes = {"x": {0: "nodes"}, "edge_index": {1: "edges"}, "edge_attr": {0: "edges"}}
    program = Program(NodeProbabilities(net), example, axes, {}, {})
    assert program.module(**example)["logits"].dtype == torch.float64
    check(program, example | {"edge_index": ends[:, :1], "edge_attr": torch.ones(1, 2)}, suffixes=[".pt2"])


def test_the_size_of_the_example_does_not_matter() -> None:
    net = shaken(TextClassifier(31, 3, width=8, depth=1, num_heads=2, attention=IKAN))
    axes = {"tokens": {0: "texts", 1: "tokens"}}
    small, large = (Program(TextProbabilities(net), texts(*size), axes, {}, {}) for size in ((2, 3), (13, 37)))
    answers = [FORMATS[".pt2"].load(contents(program, [".pt2"])[".pt2"])(texts(5, 7)) for program in (small, large)]
    assert answers[0]["logits"].equal(answers[1]["logits"])


@pytest.mark.parametrize("backend", ["chunked", "linear", "reference"])
def test_a_backend_that_was_named_is_not_needed(backend: str) -> None:
    layer = functools.partial(IKANDirect, num_samples=5, init="rbf", backend=backend)
    net = shaken(TextClassifier(31, 3, width=8, depth=1, num_heads=2, attention=layer)).double().eval()
    example = texts(7, 11)
    wanted = net(**example)
    program = Program(TextProbabilities(net), example, {"tokens": {0: "texts", 1: "tokens"}}, {}, {})
    found = FORMATS[".pt2"].load(contents(program, [".pt2"])[".pt2"])(example)["logits"]
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# --- Other checkpoints ------------------------------------------------------------------------------------------------


def test_double_precision_stays_in_pt2(read_alone: ReadAlone) -> None:
    Path("rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i * i % 7}\n" for i in range(40)))
    options = ["--data.path", "rows.csv", "--data.target", "y", *NARROW, "--trainer.precision", "64-true"]
    main(["fit", "--model", "Regression", "--data", "RegressionData", *options, *QUIET, *SMALL])
    checkpoint = Path("runs/rows/version_0/checkpoints/best.ckpt")
    export(checkpoint, "model.pt2")
    wanted = [float(row["predicted_y"]) for row in predict(checkpoint, "--input", "rows.csv")]
    with Path("rows.csv").open(newline="") as file:
        answers = read_alone("rows", "pt2", {"rows": list(csv.DictReader(file))})
    assert answers["prediction"] == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("likelihood", ["gaussian", "null"])
def test_how_sure_a_prediction_is_goes_along(
    likelihood: str, read_alone: ReadAlone, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{1e3 + i * i % 7}\n" for i in range(43)))
    options = ["--data.path", "rows.csv", "--data.target", "y", "--data.val_fraction", "0.4", *NARROW]
    options += ["--model.ensemble", "3", "--model.likelihood", likelihood]
    main(["fit", "--model", "Regression", "--data", "RegressionData", *options, *QUIET, *SMALL])
    checkpoint = Path("runs/rows/version_0/checkpoints/best.ckpt")
    capsys.readouterr()
    export(checkpoint, "model.pt2")
    assert "-> prediction (rows), std (rows), lower (rows), upper (rows)" in capsys.readouterr().out
    table = predict(checkpoint, "--input", "rows.csv")
    with Path("rows.csv").open(newline="") as file:
        answers = read_alone("rows", "pt2", {"rows": list(csv.DictReader(file))})
    for name in ("prediction", "std", "lower", "upper"):
        column = "predicted_y" if name == "prediction" else f"predicted_y_{name}"
        wanted = np.array([float(row[column]) for row in table])
        assert np.allclose(answers[name], wanted, rtol=1e-6, atol=1e-6) and len({*wanted}) == 43, name
    meaning = json.loads(Path("model.json").read_text())["outputs"]
    assert "holds the target with a probability of 0.9" in json.dumps(meaning)


def test_a_checkpoint_of_the_estimator(read_alone: ReadAlone) -> None:
    from ika_lightning.sklearn import KernelAttentionRegressor

    x = np.random.default_rng(0).normal(size=(40, 3))
    model = KernelAttentionRegressor(updates=2, width=8, depth=1, num_heads=2, random_state=0).fit(x, x[:, 0])
    model.save("model.ckpt")
    export(Path("model.ckpt"), "model.pt2")
    columns = [column["name"] for column in json.loads(Path("model.json").read_text())["encoding"]["columns"]]
    rows = [dict(zip(columns, map(repr, row), strict=True)) for row in x[:7].tolist()]
    found = read_alone("rows", "pt2", {"rows": rows})["prediction"]
    assert found == pytest.approx(model.predict(x[:7]).tolist(), rel=1e-6)


# --- What cannot be ---------------------------------------------------------------------------------------------------


def error_of(capsys: pytest.CaptureFixture[str], checkpoint: Path, output: str, *options: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        export(checkpoint, output, *options)
    assert end.value.code == 2
    assert sorted(path.name for path in Path().iterdir() if "model." in path.name) == []
    return capsys.readouterr().err.removeprefix("error: ").rstrip()


def test_mistakes_are_one_line(trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained["Regression"]
    assert error_of(capsys, checkpoint, "no/model.pt2") == (
        "cannot write no/model.pt2: there is no folder no; create it first"
    )
    for name in ("model", "model.pt", "model.PT2", "-", ".onnx"):
        assert error_of(capsys, checkpoint, name) == (
            f"cannot write {name}: its name says no format; give one that ends in .pt2 (a program for PyTorch) or "
            ".onnx (for any runtime of ONNX)"
        )
    Path("mine.json").write_text('{"my": "data"}')
    assert error_of(capsys, checkpoint, "mine.pt2") == (
        "cannot write mine.json: it is there, and describes no model; choose another --output"
    )
    assert error_of(capsys, Path("no.ckpt"), "model.pt2").startswith("no checkpoint at no.ckpt")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "onnxscript" else find(name))
    assert error_of(capsys, checkpoint, "model.onnx") == (
        "cannot write model.onnx: .onnx takes onnxscript, which the extra onnx brings: pip install "
        "'ika-lightning[onnx]'; or give a name that ends in .pt2"
    )


def test_checkpoints_that_do_not_do(trained, capsys: pytest.CaptureFixture[str]) -> None:
    saved = torch.load(trained["Regression"], weights_only=True)
    torch.save(saved | {"global_step": 0}, "new.ckpt")
    assert error_of(capsys, Path("new.ckpt"), "model.pt2") == (
        "new.ckpt has been trained for 0 updates: its weights are random; train it first"
    )
    torch.save({key: value for key, value in saved.items() if key != "RegressionData"}, "bare.ckpt")
    assert error_of(capsys, Path("bare.ckpt"), "model.pt2").startswith(
        "bare.ckpt does not say how its data was encoded: it holds no RegressionData; train with"
    )
    weights = saved["state_dict"] | {"net.head.bias": torch.full((1,), torch.nan)}
    torch.save(saved | {"state_dict": weights}, "nan.ckpt")
    assert error_of(capsys, Path("nan.ckpt"), "model.pt2") == (
        "nan.ckpt answers with nan or inf: its training has diverged; take an earlier checkpoint"
    )
    torch.save({"weights": torch.zeros(2)}, "other.ckpt")
    assert error_of(capsys, Path("other.ckpt"), "model.pt2").startswith("other.ckpt is not a Lightning checkpoint")


class _Plain(LightningModule):
    """A model that says nothing of what it computes; its name is private, as messages list all others."""


def test_tasks_say_what_they_compute() -> None:
    from ika_lightning.tasks import NodeClassification, Regression, TextClassification, Translation

    tasks = (NodeClassification(), Regression(), TextClassification(), Translation())
    assert all(isinstance(task, Exports) for task in tasks)
    with pytest.raises(
        UsageError, match=r"^_Plain cannot be exported, as it does not say what it computes: give it a "
    ):
        load_program(_Plain(), None, Path("no.ckpt"), single=False)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Sized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)


class Foreign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ika_tests.twice(x)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.inner(x)}


def test_what_a_format_cannot_express() -> None:
    @torch.library.custom_op("ika_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    twice.register_fake(torch.empty_like)

    def refusal(layer: nn.Module, suffix: str) -> str:
        with pytest.raises(UsageError) as error:
            contents(Program(Around(layer), {"x": torch.ones(5, 3)}, {"x": {0: "rows"}}, {}, {}), [suffix])
        return str(error.value)

    assert refusal(Bessel(), ".onnx") == (
        "ONNX cannot express prims.bessel_j0.default of inner (Bessel); give a name that ends in .pt2"
    )
    assert refusal(Foreign(), ".pt2") == (
        "inner (Foreign) cannot be exported, as it has an operator of its own, ika_tests.twice.default; train with a "
        "layer made of PyTorch's operators"
    )
    depends = "Around cannot be exported, as what it computes depends on numbers or sizes in a way that torch.export "
    assert refusal(Branch(), ".pt2").startswith(depends)
    assert "rows" in refusal(Sized(), ".pt2") and refusal(Sized(), ".pt2").startswith(depends)


def test_a_file_that_gives_other_numbers_is_not_written(trained, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = FORMATS[".pt2"]._replace(load=lambda content: lambda inputs: {"prediction": torch.zeros(11)})
    monkeypatch.setitem(FORMATS, ".pt2", wrong)
    with pytest.raises(
        RuntimeError, match="the exported model gives another prediction than the model: they differ by "
    ):
        export(trained["Regression"], "model.pt2")
    assert not list(Path().glob("*model*"))


def test_a_full_disk_leaves_both_files(file_size_limit: Callable[[int], AbstractContextManager[None]]) -> None:
    write, (file, beside) = ika_lightning.cli.export.write_files, (Path("model.pt2"), Path("model.json"))
    for sizes in ((500, 100), (100, 500)):
        for there in (False, True):
            if there:
                write({file: b"old", beside: b"older"})
            with file_size_limit(400), pytest.raises(OSError, match=r"^cannot write model\.\w+: File too large$"):
                write({path: b"x" * size for path, size in zip((file, beside), sizes, strict=True)})
            assert {path.name: path.read_bytes() for path in Path().iterdir()} == (
                {"model.pt2": b"old", "model.json": b"older"} if there else {}
            )
        file.unlink()
        beside.unlink()
