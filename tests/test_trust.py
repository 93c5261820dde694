"""A file from somebody else is data: what it names neither runs nor is imported, unless its user says so.

Each attack here would leave a file ``ran``, or the module ``evil`` among those that are imported.
"""

import copy
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch_geometric.data import Data
from torch_geometric.loader import ClusterData
from torch_geometric.nn import GATConv

from ika_lightning.attention import DotProduct
from ika_lightning.callbacks.last import WholeCheckpointIO
from ika_lightning.cli import main
from ika_lightning.cli.command import GROUPS
from ika_lightning.data import NodeClassificationData, RegressionData
from ika_lightning.data.graphs import load_graph
from ika_lightning.tasks import NodeClassification, Regression
from ika_lightning.trust import Names, Untrusted, check_callbacks

EVALUATION = ("validate", "test", "predict", "report")
SUBCOMMANDS = ("fit", *EVALUATION)

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
QUIET += ["--trainer.enable_model_summary", "false"]

EVIL = """
from pathlib import Path
from torch.optim import Optimizer, SGD
from lightning.pytorch import Callback
from ika_lightning.attention import DotProduct, MultiheadAttention

Path("ran").write_text("imported")

class Layer(DotProduct):
    def __init__(self, *args, **kwargs):
        Path("ran").write_text("built")
        super().__init__(*args, **kwargs)

class Watcher(Callback):
    def __init__(self):
        Path("ran").write_text("built")

def layer(width: int, heads: int) -> MultiheadAttention:
    Path("ran").write_text("called")
    return DotProduct(width, heads)

def optimizer(params) -> Optimizer:
    Path("ran").write_text("called")
    return SGD(params, 0.1)
"""

MINE = """
from ika_lightning.attention import DotProduct
from ika_lightning.data import RegressionData

class Layer(DotProduct):
    def __init__(self, embed_dim: int, num_heads: int, note="a.note", **kwargs):
        super().__init__(embed_dim, num_heads, **kwargs)

class Rows(RegressionData):
    def __init__(self, path: str, target: str, predict_path: str | None = None):
        super().__init__(path=path, target=target, predict_path=predict_path)
"""

RUN = {"class_path": "os.system", "init_args": {"command": "touch ran"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the checkpoint of a small regression holds."""
    with chdir(tmp_path_factory.mktemp("trained")):
        write_rows()
        size = ["--model.width", "2", "--model.num_heads", "1", "--model.depth", "1", "--model.ffn_width", "3"]
        data = ["--data", "RegressionData", "--data.path", "rows.csv", "--data.target", "y"]
        layer = ["--model.attention", "ika_lightning.attention.DotProduct"]
        options = [*layer, *QUIET, "--trainer.max_epochs", "1", "--pictures", "0"]
        main(["fit", "--model", "Regression", *data, *size, *options])
        return torch.load("runs/rows/version_0/checkpoints/last.ckpt", weights_only=True)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a test into a folder with a module that must not be imported, and look whether something has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_rows()
    Path("evil.py").write_text(EVIL)
    Path("mine.py").write_text(MINE)
    yield
    imported = {"evil", "new", "this"} & sys.modules.keys()
    for name in (*imported, "mine"):
        sys.modules.pop(name, None)
    assert not imported
    assert not Path("ran").exists()


def write_rows() -> None:
    Path("rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i * i % 7}\n" for i in range(23)))


def changed(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A configuration with another value in a place."""
    config = copy.deepcopy(config)
    *path, last = place.split(".")
    part = config
    for key in path:
        part = part[key] if "class_path" not in part else part["init_args"][key]
    (part["init_args"] if "class_path" in part else part)[last] = value
    return config


def write(checkpoint: dict[str, Any], config: Mapping[str, Any] | str, path: str = "x.ckpt", **others: Any) -> None:
    text = config if isinstance(config, str) else yaml.safe_dump(config)
    torch.save(checkpoint | {"config": text} | others, path)


def run(capsys: pytest.CaptureFixture[str], subcommand: str, *options: str) -> tuple[int, str]:
    """Exit code and stderr of a command that takes x.ckpt."""
    more = {"fit": ["--trainer.max_epochs", "2"], "predict": ["--input", "rows.csv"]}.get(subcommand, [])
    capsys.readouterr()
    code = 0
    try:
        main([subcommand, "--ckpt_path", "x.ckpt", *QUIET, *more, *options])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


def error_of(capsys: pytest.CaptureFixture[str], subcommand: str, *options: str) -> str:
    """The message of a command that has to end with one line on stderr and exit code 2."""
    code, stderr = run(capsys, subcommand, *options)
    line = stderr.splitlines()[-1]
    assert code == 2 and line.startswith("error: "), stderr
    assert [other for other in stderr.splitlines()[:-1] if not other.startswith("note: ")] == []
    return line.removeprefix("error: ")


@pytest.fixture
def config(trained: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(trained["config"])


# what a checkpoint may name for the attention of a model, if nobody looks
STRANGE_NAMES = {
    "builtins.eval": {"dict_kwargs": {"source": "open('ran', 'w')"}},
    "builtins.exec": {"dict_kwargs": {"source": "open('ran', 'w')"}},
    "evil.Layer": {},
    "evil.layer": {},
    "functools.partial": {"dict_kwargs": {"func": "os.system"}},
    "ika_lightning.cli.command.Command": {"init_args": {"args": ["fit", "--config", "evil.yaml"]}},
    "importlib.import_module": {"init_args": {"name": "evil"}},
    "os.system": {"init_args": {"command": "touch ran"}},
    "runpy.run_path": {"init_args": {"path_name": "evil.py"}},
    "subprocess.Popen": {"init_args": {"args": ["touch", "ran"]}},
    "subprocess.run": {"dict_kwargs": {"args": ["touch", "ran"]}},
    "this.s": {},
    "torch.hub.load": {"init_args": {"repo_or_dir": ".", "model": "x", "source": "local"}},
}


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
@pytest.mark.parametrize("name", STRANGE_NAMES)
def test_a_strange_name_is_refused(name, subcommand, trained, config, capsys) -> None:
    write(trained, changed(config, "model.attention", {"class_path": name, **STRANGE_NAMES[name]}))
    message = error_of(capsys, subcommand)
    assert message.startswith(f"x.ckpt names {name} as model.attention; a checkpoint may name classes alone: ")
    assert message.endswith(f"If you trust it: --trust {name}, or trust=['{name}'] in Python")


#: Where a training takes a class.
PLACES = (
    "model",
    "model.attention",
    "model.optimizer",
    "model.scheduler",
    "data",
    "data.path",
    "trainer.accelerator",
    "trainer.callbacks",
    "trainer.logger",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.strategy",
    "checkpoint.dirpath",
    "early_stopping.monitor",
    "last.every_n_epochs",
    "pictures",
    "seed_everything",
)


@pytest.mark.parametrize("place", PLACES)
def test_wherever_it_stands(place, config) -> None:
    names = {name: Names("x.ckpt", resume=True) for name in ("mapping", "list")}
    with pytest.raises(Untrusted, match=f"x.ckpt names os.system as {place}; "):
        names["mapping"].usable(changed(config, place, RUN), GROUPS)
    with pytest.raises(Untrusted, match=f"x.ckpt names os.system as {place}; "):
        names["list"].usable(changed(config, place, [RUN]), GROUPS)


# other ways to say it, which end at the parser in the same way
SPELLINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a name alone": lambda config: changed(config, "model.optimizer", "evil.optimizer"),
    "YAML in a string": lambda config: changed(config, "model.attention", yaml.safe_dump(RUN)),
    "YAML in YAML": lambda config: changed(config, "model.attention", yaml.safe_dump([yaml.safe_dump(RUN)])),
    "the name of a file": lambda config: changed(config, "model.optimizer", "evil.yaml"),
    "the name of a file without an ending": lambda config: changed(config, "trainer.strategy", "evil"),
    "a section as a file": lambda config: changed(config, "trainer", "section.yaml"),
    "a file of more": lambda config: config | {"config": "whole.yaml"},
    "a path in a key": lambda config: config | {"model.init_args.optimizer": RUN},
    "a path in an inner key": lambda config: changed(config, "model.optimizer.class_path", "os.system"),
    "an addition to a list": lambda config: changed(config, "trainer.callbacks+", RUN),
    "further arguments": lambda config: config | {"model": config["model"] | {"dict_kwargs": {"optimizer": RUN}}},
    "arguments of the default": lambda config: changed(config, "model.attention", {"backend": "evil.layer"}),
    "arguments without a class": lambda config: changed(config, "model.attention", {"init_args": {"x": RUN}}),
    "something beside a class": lambda config: changed(config, "model.attention", RUN | {"__path__": "evil.yaml"}),
    "a callable of a callback": lambda config: changed(
        config,
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"on_fit_start": "evil.layer"}}],
    ),
    "a callable of a schedule": lambda config: changed(
        config,
        "model.scheduler",
        {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": "evil.optimizer"}},
    ),
    "a callable of a layer": lambda config: changed(
        config,
        "model.attention",
        {"class_path": "torch.nn.TransformerEncoderLayer", "init_args": {"nhead": 1, "activation": "evil.layer"}},
    ),
    "a number": lambda config: changed(config, "model.optimizer.lr", "evil.Layer"),
    "its own trust": lambda config: changed(config, "model.attention", RUN) | {"trust": ["os.system"]},
    "a set": lambda config: changed(config, "trainer.callbacks", {"evil.Watcher"}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_however_it_is_spelled(spelling, trained, config, capsys) -> None:
    Path("evil.yaml").write_text(yaml.safe_dump(RUN))
    Path("evil").write_text(yaml.safe_dump(RUN))
    Path("section.yaml").write_text(yaml.safe_dump({"callbacks": [RUN]}))
    Path("whole.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [RUN]}}))
    if spelling == "a path in an inner key":
        config = changed(config, "model.optimizer", {})
    write(trained, SPELLINGS[spelling](config))
    assert error_of(capsys, "fit").startswith("x.ckpt")


def test_what_a_training_runs_evaluation_does_not_look_at(trained, config, capsys) -> None:
    for place in ("callbacks", "logger", "plugins", "profiler", "strategy"):
        config = changed(config, f"trainer.{place}", RUN)
    for place in ("optimizer", "scheduler"):
        config = changed(config, f"model.{place}", RUN)
    config = changed(config, "checkpoint.dirpath", RUN)
    config["model"]["dict_kwargs"] = {"optimizer": RUN}
    write(trained, config | {"config": "evil.yaml", "another": RUN})
    for subcommand in EVALUATION:
        assert run(capsys, subcommand) == (0, "")


def test_a_name_in_an_error_is_not_imported(trained, config, capsys) -> None:
    # what jsonargparse says of this holds the text of a class that it could not build
    write(trained, changed(config, "model.attention", {"nothing": "of class_path='evil.Layer'"}))
    assert error_of(capsys, "test").startswith("--model.attention.nothing: IKANDirect has no such option; ")
    write(trained, changed(config, "model.width", "Problem with given class_path 'evil.Layer'"))
    assert error_of(capsys, "test").startswith("--model.width: expected int, got ")


def test_a_file_named_like_the_configuration_is_not_read(trained, config, capsys) -> None:
    config = {"model": {"class_path": config["model"]["class_path"]}}
    for kept in (config, config | {"trainer": {"precision": None}}):
        Path(yaml.safe_dump(kept)).write_text(yaml.safe_dump(config | {"model": {"class_path": "evil.Layer"}}))
    write(trained, config)
    assert error_of(capsys, "test").startswith("nothing says what to run: ")


def test_a_file_of_the_user_is_no_class(trained, config, capsys) -> None:
    Path("new.py").write_text(EVIL)
    write_rows()
    Path("rows.csv").rename("new.csv")
    write(trained, changed(config, "data.predict_path", {"class_path": "new.csv"}))
    assert error_of(capsys, "predict", "--input", "new.csv").startswith("x.ckpt names new.csv as data.predict_path; ")
    assert error_of(capsys, "predict", "--data.predict_path=new.csv").startswith("x.ckpt names new.csv as ")


class TestWhatMayBeNamed:
    @pytest.mark.parametrize(
        "name",
        [
            "ika_lightning.attention.MIKAN",
            "ika_lightning.attention.KernelGATConv",
            "ika_lightning.tasks.Regression",
            "ika_lightning.data.RegressionData",
            "torch.nn.MultiheadAttention",
            "torch.nn.modules.linear.Linear",
            "torch_geometric.nn.GATConv",
            "torch_geometric.nn.conv.gcn_conv.GCNConv",
        ],
    )
    def test_in_evaluation(self, name) -> None:
        Names("x.ckpt", resume=False).check({"class_path": name}, Callable, "model.attention")

    @pytest.mark.parametrize(
        "name",
        [
            "ika_lightning.callbacks.Pictures",
            "ika_lightning.tasks.schedule.InverseSquareRoot",
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "lightning.pytorch.cli.ReduceLROnPlateau",
            "lightning.pytorch.loggers.CSVLogger",
            "lightning.pytorch.plugins.MixedPrecision",
            "lightning.pytorch.strategies.DDPStrategy",
            "torch.optim.AdamW",
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
        ],
    )
    def test_when_a_training_goes_on(self, name) -> None:
        Names("x.ckpt", resume=True).check({"class_path": name}, Callable, "trainer.callbacks")
        with pytest.raises(Untrusted, match=f"x.ckpt names {name} as "):
            Names("x.ckpt", resume=False).check({"class_path": name}, Callable, "trainer.callbacks")

    @pytest.mark.parametrize(
        "name",
        [
            "MIKAN",
            "ika_lightning.cli.main",
            "ika_lightning.data.graphs.Path",
            "torch.nn.functional.relu",
            "ika_lightning.attention.IKAN ",
            "ika_lightning.attention.Nothing",
            "ika_lightning.attention.attention_kl",
            "lightning.pytorch.Trainer",
            "lightning.pytorch.cli.SaveConfigCallback",
            "lightning.pytorch.serve.ServableModuleValidator",
            "torch.nn.Module",
            "torch.optim.Optimizer",
            "torch.optim.swa_utils.AveragedModel",
            "torch.nn.modules.linear.math.prod",
            # it imports another package when it is built
            "torch_geometric.nn.models.SchNet",
            "torch_geometric.nn.resolver.activation_resolver",
            7,
            None,
        ],
    )
    def test_and_nothing_else(self, name) -> None:
        with pytest.raises(Untrusted, match=r"x\.ckpt names "):
            Names("x.ckpt", resume=True).check({"class_path": name}, Callable, "model.attention")

    def test_text_is_text(self) -> None:
        names = Names("x.ckpt", resume=False)
        for text in ("evil.Layer", "rows.csv", "{class_path: os.system}", "evil.py"):
            names.check(text, str | None, "data.path")
        names.check({"a.b": "evil.Layer"}, dict[str, str], "data.columns")
        names.check("ddp", str, "trainer.strategy")
        # nobody says what it is, so it is no class; but it may be YAML
        names.check("evil.Layer", Any, "data.path")
        with pytest.raises(Untrusted):
            names.check("{class_path: evil.Layer}", Any, "data.path")


class TestTrust:
    @pytest.fixture
    def mine(self, trained, config) -> None:
        layer = {"class_path": "mine.Layer", "init_args": {"note": "another.note"}}
        config = changed(config, "model.attention", layer)
        config["data"] = {"class_path": "mine.Rows", "init_args": {"path": "rows.csv", "target": "y"}}
        state = {"Rows": trained["RegressionData"]}
        write(trained, config, **state)

    def test_its_user_may(self, mine, capsys) -> None:
        both = ["--trust", "mine.Layer", "--trust=mine.Rows"]
        for subcommand in SUBCOMMANDS:
            assert error_of(capsys, subcommand, *both[:2]).startswith("x.ckpt names mine.Rows as data; ")
            assert error_of(capsys, subcommand, both[2]).startswith("x.ckpt names mine.Layer as model.attention; ")
            code, stderr = run(capsys, subcommand, *both)
            assert code == 0, stderr

    def test_by_the_same_name_in_the_same_place(self, mine, capsys) -> None:
        layer, rows = ["--model.attention", "mine.Layer"], ["--data=mine.Rows"]
        assert run(capsys, "test", *layer, *rows)[0] == 0
        assert run(capsys, "test", "--model.attention.class_path=mine.Layer", *rows)[0] == 0
        assert error_of(capsys, "test", "--data", "mine.Layer").startswith("x.ckpt names mine.Layer as model.attention")
        Path("own.yaml").write_text("data: {class_path: mine.Rows}")
        assert run(capsys, "test", "--config", "own.yaml", *layer)[0] == 0
        Path("own.yaml").write_text("trust: [mine.Layer, mine.Rows]")
        assert run(capsys, "test", "--config", "own.yaml")[0] == 0

    def test_other_data_takes_the_place_of_the_checkpoints(self, mine, capsys) -> None:
        rows = ["--data", "RegressionData", "--data.path", "rows.csv", "--data.target", "y"]
        assert run(capsys, "test", "--trust", "mine.Layer", *rows)[0] == 0

    def test_what_is_trusted_has_to_be_there(self, mine, capsys) -> None:
        Path("mine.py").unlink()
        message = error_of(capsys, "test", "--trust", "mine.Layer")
        assert message == "x.ckpt names mine.Layer as model.attention, which cannot be had: No module named 'mine'"

    def test_a_run_with_own_classes_goes_on(self, trained, config, capsys) -> None:
        Path("own.yaml").write_text(yaml.safe_dump(changed(config, "model.attention", {"class_path": "mine.Layer"})))
        arguments = ["fit", "--config", "own.yaml", *QUIET]
        main(arguments)
        main([*arguments, "--ckpt_path", "last", "--trainer.max_epochs", "2"])
        last = Path("runs/rows/version_0/checkpoints/last.ckpt")
        assert torch.load(last, weights_only=True)["epoch"] == 2
        assert "mine.Layer" in torch.load(last, weights_only=True)["config"]

    def test_arguments_of_what_is_trusted_are_not(self, config) -> None:
        layer = {"class_path": "mine.Layer", "init_args": {"note": RUN}}
        names = Names("x.ckpt", resume=False, trusted=["mine.Layer"])
        with pytest.raises(Untrusted, match=r"x\.ckpt names os\.system as model\.attention\.note; "):
            names.usable(changed(config, "model.attention", layer), GROUPS)


class TestPython:
    @pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
    @pytest.mark.parametrize("argument", ["attention", "optimizer"])
    def test_arguments_are_data(self, argument, key, trained) -> None:
        torch.save(trained | {key: trained["hyper_parameters"] | {argument: RUN}}, "x.ckpt")
        with pytest.raises(Untrusted, match=rf"^x\.ckpt names os\.system as {argument}; .*trust=\['os\.system'\]"):
            Regression.load_from_checkpoint("x.ckpt")
        with Path("x.ckpt").open("rb") as file, pytest.raises(Untrusted, match=r"^the checkpoint names os\.system as "):
            Regression.load_from_checkpoint(file)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"attention": "evil.Layer"},
            {"attention": "{class_path: evil.Layer}"},
            {"optimizer": "evil.optimizer"},
            {"attention": {"class_path": "ika_lightning.attention.ExplicitKernel", "init_args": {"kernel": RUN}}},
            {"_class_path": "evil.Layer"},
            {"width.x": RUN},
            {"class_path": "os.system", "init_args": {"command": "touch ran"}},
        ],
        ids=str,
    )
    def test_in_all_ways(self, arguments, trained) -> None:
        torch.save(trained | {"hyper_parameters": trained["hyper_parameters"] | arguments}, "x.ckpt")
        with pytest.raises(ValueError, match=r"^x\.ckpt"):
            Regression.load_from_checkpoint("x.ckpt")

    def test_as_one_argument(self, trained) -> None:
        own = {"hyper_parameters": RUN | {"_instantiator": trained["hyper_parameters"]["_instantiator"]}}
        torch.save(trained | own | {"hparams_name": "attention"}, "x.ckpt")
        with pytest.raises(Untrusted, match=r"x\.ckpt names os\.system as its class"):
            Regression.load_from_checkpoint("x.ckpt")

    def test_without_end(self, trained) -> None:
        endless: list[Any] = []
        endless.append(endless)
        torch.save(trained | {"hyper_parameters": {"attention": endless}}, "x.ckpt")
        with pytest.raises(ValueError, match=r"x\.ckpt: its configuration has no end"):
            Regression.load_from_checkpoint("x.ckpt")

    def test_data_as_well(self, trained) -> None:
        key = "datamodule_hyper_parameters"
        torch.save(trained | {key: trained[key] | {"path": RUN}}, "x.ckpt")
        with pytest.raises(Untrusted, match=r"x\.ckpt names os\.system as path; "):
            RegressionData.load_from_checkpoint("x.ckpt")
        assert RegressionData.load_from_checkpoint("x.ckpt", path="rows.csv").path == "rows.csv"

    def test_its_user_may(self, trained) -> None:
        torch.save(trained | {"hyper_parameters": trained["hyper_parameters"] | {"attention": LAYER}}, "x.ckpt")
        with pytest.raises(Untrusted, match=r"x\.ckpt names mine\.Layer as attention"):
            Regression.load_from_checkpoint("x.ckpt")
        model = Regression.load_from_checkpoint("x.ckpt", trust=["mine.Layer"])
        assert type(model.net.encoder.layers[0].attention).__name__ == "Layer"

    def test_what_is_named_in_the_call_is_not_taken_from_the_checkpoint(self, trained) -> None:
        torch.save(trained | {"hyper_parameters": trained["hyper_parameters"] | {"attention": RUN}}, "x.ckpt")
        assert Regression.load_from_checkpoint("x.ckpt", attention=DotProduct, strict=True).net is not None

    def test_a_class_of_ones_own_is_known_to_itself(self, trained) -> None:
        hyperparameters = trained["hyper_parameters"] | {"_class_path": f"{__name__}.OwnRegression"}
        torch.save(trained | {"hyper_parameters": hyperparameters}, "x.ckpt")
        assert type(OwnRegression.load_from_checkpoint("x.ckpt")) is OwnRegression
        with pytest.raises(Untrusted, match=f"{__name__}.OwnRegression as its class"):
            Regression.load_from_checkpoint("x.ckpt")

    def test_a_file_of_arguments_is_not_read(self, trained) -> None:
        torch.save(trained, "x.ckpt")
        for arguments in ({"hparams_file": "hparams.yaml"}, {}):
            with pytest.raises(TypeError, match="hparams_file is not read"):
                Regression.load_from_checkpoint("x.ckpt", None, *([] if arguments else ["hparams.yaml"]), **arguments)


LAYER = {"class_path": "mine.Layer", "init_args": {}}


class OwnRegression(Regression):
    pass


class Call:
    """Becomes the call of a function in a pickle."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class TestPickles:
    def test_what_a_library_lets_pickles_build(self, trained, config, capsys) -> None:
        # this class loads the file of another pickle, and PyTorch Geometric lets all files build it
        Path("part_2").mkdir()
        torch.save(Call(exec, "open('ran', 'w')"), "part_2/metis.pt")
        graph = Call(Data, None, torch.tensor([[0, 1], [1, 0]]))
        clusters = Call(ClusterData, graph, 2, False, ".", None, False)
        write(trained, config, more=clusters)
        message = (
            "x.ckpt holds torch_geometric.loader.cluster.ClusterData, which takes running code from the file to load"
        )
        for subcommand in SUBCOMMANDS:
            assert error_of(capsys, subcommand) == f"{message}: refused"
        for load in (Regression.load_from_checkpoint, RegressionData.load_from_checkpoint):
            with pytest.raises(Untrusted, match=message):
                load("x.ckpt")
        with pytest.raises(pickle.UnpicklingError):
            WholeCheckpointIO().load_checkpoint("x.ckpt")
        torch.save(clusters, "graph.pt")
        with pytest.raises(Untrusted, match=r"graph\.pt holds torch_geometric\.loader\.cluster\.ClusterData, which "):
            load_graph("graph.pt")

    def test_classes_that_libraries_have_added_stay_added(self) -> None:
        before = set(torch.serialization.get_safe_globals())
        torch.save(Data(x=torch.ones(2, 1), edge_index=torch.tensor([[0], [1]])), "graph.pt")
        load_graph("graph.pt")
        assert set(torch.serialization.get_safe_globals()) == before

    @pytest.mark.parametrize("key", ["epoch", "global_step"])
    def test_a_checkpoint_that_lacks_what_all_have(self, key, trained, config, capsys) -> None:
        write(trained, config, **{key: "many"})
        assert error_of(capsys, "report") == f"x.ckpt is not a Lightning checkpoint: it holds no {key!r}"

    def test_damaged_pickles_are_one_line(self) -> None:
        # of a class that may be built, with a state that this class cannot have
        graph = Data.__new__(Data)
        graph.__dict__["_store"] = 1
        torch.save(graph, "graph.pt")
        with pytest.raises(ValueError, match=r"^graph\.pt is no file of torch\.save, or is damaged "):
            load_graph("graph.pt")


class TestStateOfCallbacks:
    @pytest.fixture
    def resumed(self, trained, config) -> Callable[[str], None]:
        """Write a checkpoint that remembers a former one elsewhere, into the folder of its run."""

        def write_to_run(path: str) -> None:
            folder = Path("runs/rows/version_0/checkpoints")
            folder.mkdir(parents=True)
            callbacks = copy.deepcopy(trained["callbacks"])
            (state,) = (state for name, state in callbacks.items() if name.startswith("ModelCheckpoint"))
            assert state["dirpath"] == str(folder)
            worst = torch.tensor(99.0)
            state |= {"kth_best_model_path": path, "best_k_models": {path: worst}, "kth_value": worst}
            write(trained, config, str(folder / "last.ckpt"), callbacks=callbacks)

        return write_to_run

    @pytest.mark.parametrize(
        "path", ["local://{here}/thesis", "{run}/../../../../thesis", "{here}/runs/../thesis", "file::local://thesis"]
    )
    def test_nothing_outside_of_its_folder_is_removed(self, path, resumed, capsys) -> None:
        Path("thesis").mkdir()
        Path("thesis/thesis.tex").touch()
        path = path.format(here=Path.cwd(), run="runs/rows/version_0/checkpoints")
        resumed(path)
        with pytest.raises(SystemExit) as end:
            last = "runs/rows/version_0/checkpoints/last.ckpt"
            main(["fit", "--ckpt_path", last, *QUIET, "--trainer.max_epochs", "3"])
        assert end.value.code == 2
        assert f"last.ckpt remembers the checkpoint {path!r}, which is outside of " in capsys.readouterr().err
        assert Path("thesis/thesis.tex").exists()

    def test_a_folder_above_is_fine(self) -> None:
        folder = os.path.join("..", "runs", "version_0")
        check_callbacks(
            {"ModelCheckpoint": {"dirpath": folder, "best_model_path": os.path.join(folder, "a")}}, "x.ckpt"
        )
        former = os.path.join("..", "former", "a")
        check_callbacks({"ModelCheckpoint": {"dirpath": folder, "best_model_path": former}}, "x.ckpt")
        check_callbacks({"ModelCheckpoint": {"dirpath": "s3://b/c", "best_model_path": "s3://b/c/d"}}, "x.ckpt")
        check_callbacks({"EarlyStopping": {"wait_count": 1}, "other": None}, "x.ckpt")
        check_callbacks(None, "x.ckpt")


class TestYaml:
    TAG = "model: !!python/object/apply:os.system ['touch ran']\n"

    @pytest.mark.parametrize("subcommand", ["fit", "test"])
    def test_tags_of_a_users_file(self, subcommand, trained, config, capsys) -> None:
        write(trained, config)
        Path("own.yaml").write_text("trainer: {}\n" + self.TAG)
        tag = "'tag:yaml.org,2002:python/object/apply:os.system'"
        message = error_of(capsys, subcommand, "--config", "own.yaml")
        assert message == f"own.yaml:2: not valid YAML: could not determine a constructor for the tag {tag}"

    @pytest.mark.parametrize(
        ("text", "message"),
        {
            TAG: ":1: not valid YAML: could not determine a constructor for the tag ",
            "model: [": ":1: not valid YAML: expected the node content, but found '<stream end>'",
            "seed: 2020-13-13": ": not valid YAML: month must be in 1..12",
            "model: " + "[" * 1000: ": not valid YAML: maximum recursion depth exceeded",
            "words": ": expected sections such as model, data and trainer",
            "model: &a {init_args: *a}": ": its configuration has no end",
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
            )
            + "model: *h\n": ": its configuration has no end",
        }.items(),
    )
    def test_of_a_checkpoint(self, text, message, trained, capsys) -> None:
        write(trained, text)
        for subcommand in ("fit", "predict"):
            assert error_of(capsys, subcommand).startswith(f"the configuration inside x.ckpt{message}")

    def test_of_the_file_beside_a_checkpoint(self, trained, config, capsys) -> None:
        torch.save({key: value for key, value in trained.items() if key != "config"}, "x.ckpt")
        Path("config.yaml").write_text(yaml.safe_dump(changed(config, "model.attention", RUN)))
        assert error_of(capsys, "test").startswith("x.ckpt names os.system as model.attention; ")
        Path("config.yaml").write_bytes(b"model: \xff")
        assert error_of(capsys, "test").startswith("config.yaml, line 1: byte 0xff is not UTF-8")


def test_a_graph_task_names_its_convolution_by_data_alone() -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(NodeClassification(GATConv, width=2, num_heads=1), NodeClassificationData("karate"))
    trainer.save_checkpoint("graph.ckpt")
    assert isinstance(NodeClassification.load_from_checkpoint("graph.ckpt").net.last, GATConv)
    torch.save(torch.load("graph.ckpt", weights_only=True) | {"hyper_parameters": {"conv": RUN}}, "graph.ckpt")
    with pytest.raises(Untrusted, match=r"graph\.ckpt names os\.system as conv; "):
        NodeClassification.load_from_checkpoint("graph.ckpt")
