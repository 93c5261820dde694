"""What a training prints of its model, and what it is called, before it starts and when it has ended."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelSummary

from ika_lightning.cli import main
from ika_lightning.cli.summary import table_of

QUICK = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.enable_progress_bar", "false"]
SMALL = ["--model.width", "8", "--model.depth", "1", "--model.num_heads", "2", "--pictures", "0"]
REGRESSION = ["fit", "--model", "Regression", "--data", "RegressionData", *SMALL, *QUICK]
PROGRAM = "python -m ika_lightning"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my rows.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{i * i % 7}\n" for i in range(40)))


class TestWhatATrainingPrints:
    def test_before_and_after(self, capsys: pytest.CaptureFixture[str]) -> None:
        main([*REGRESSION, "--data.path", "my rows.csv", "--data.target", "y"])
        lines = capsys.readouterr().out.splitlines()
        table = [line.split() for line in lines if line.startswith(("part", "net.", "all"))]
        assert table[0] == ["part", "kind", "parameters"]
        assert [row[0] for row in table[1:]] == ["net.embed", "net.target", "net.encoder", "net.head", "all"]
        assert sum(int(row[-1].replace(",", "")) for row in table[1:-1]) == int(table[-1][-1].replace(",", ""))
        best = "'runs/my rows/version_0/checkpoints/best.ckpt'"
        assert lines[-3:] == [
            f"to test it:       {PROGRAM} test --ckpt_path {best}",
            f"to predict:       {PROGRAM} predict --ckpt_path {best} --input FILE",
            f"to look into it:  {PROGRAM} report --ckpt_path {best}",
        ]

    @pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with")
    def test_other_callbacks_do_not_change_the_summary(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Those of the recipe of a regression are such."""
        options = ["--trainer.callbacks=ika_lightning.callbacks.AveragedWeights", "--trainer.callbacks.decay=0.9"]
        main([*REGRESSION, "--data.path", "my rows.csv", "--data.target", "y", *options])
        printed = capsys.readouterr().out
        assert printed.count("net.embed") == 1 and "FLOPs" not in printed and "val_metrics" not in printed

    @pytest.mark.parametrize("chosen", ["--trainer.callbacks=ModelSummary", "--trainer.enable_model_summary=false"])
    def test_a_summary_of_ones_own_stays(
        self, chosen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ModelSummary, "summarize", lambda *args, **kwargs: print("Lightning's own"))
        main([*REGRESSION, "--data.path", "my rows.csv", "--data.target", "y", chosen])
        printed = capsys.readouterr().out
        assert "parameters" not in printed and ("Lightning's own" in printed) is ("ModelSummary" in chosen)


class TestTable:
    def test_fixed_parameters_and_parts_of_a_model_with_several(self) -> None:
        class Model(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.reads = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU())
                self.says = torch.nn.Linear(5, 1000).requires_grad_(False)
                self.drops = torch.nn.Dropout()

        assert table_of(Model()).splitlines() == [
            "part   kind                 parameters",
            "reads  Sequential                   20",
            "says   Linear                    6,000",
            "all    6,000 of them fixed       6,020",
        ]

    def test_a_parameter_of_a_network_itself_is_not_lost(self) -> None:
        class Network(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale, self.layer = torch.nn.Parameter(torch.ones(())), torch.nn.Linear(2, 3)

        class Model(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = Network()

        assert [line.split() for line in table_of(Model()).splitlines()[1:]] == [
            ["net", "Network", "10"],
            ["all", "10"],
        ]


class TestNameOfARun:
    @pytest.mark.parametrize(
        ("options", "name"),
        [
            (["--data.name", "co2"], "co2"),
            (["--data.path", "my rows.csv", "--data.target", "y"], "my rows"),
            (["--data.path", "my rows.csv", "--data.target", "y", "--trainer.logger.name", "mine"], "mine"),
            (["--data.name", "co2", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"], "co2"),
        ],
    )
    def test_is_that_of_its_data_unless_told_otherwise(self, options: list[str], name: str) -> None:
        main([*REGRESSION, *options, "--trainer.enable_model_summary", "false"])
        (best,) = Path("runs").glob("*/version_0/checkpoints/best.ckpt")
        assert best.parts[1] == name

    def test_of_files_of_sentences(self) -> None:
        for language, word in (("en", "page"), ("de", "Seite")):
            Path(f"book.{language}").write_text("".join(f"{word} {i}\n" for i in range(40)))
        files = ["--data.source", "book.en", "--data.target", "book.de", "--data.vocabulary", "280"]
        main(["fit", "--model", "Translation", "--data", "TranslationData", *files, *SMALL, *QUICK])
        assert [folder.name for folder in Path("runs").iterdir()] == ["book"]
