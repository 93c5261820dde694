"""How long a training is where nobody says so."""

from pathlib import Path

import pytest
import torch
import yaml

from ika_lightning.cli import main

ROWS = ["--model", "Regression", "--model.width", "8", "--model.depth", "1", "--model.num_heads", "2", "--data",
        "RegressionData", "--data.name", "airline_passengers"]  # fmt: skip
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--pictures", "0"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def short(monkeypatch):
    """A recipe that takes no minutes."""
    from ika_lightning.tasks import Regression
    from ika_lightning.tasks.recipe import Recipe

    monkeypatch.setattr(Regression, "recipe", Recipe(updates=23, measurements=4, decay=0.9, model={"ensemble": 2}))


def fit(*options: str) -> dict:
    main(["fit", *ROWS, *QUIET, *options])
    return yaml.safe_load(Path("runs/airline_passengers/version_0/config.yaml").read_text())


def last() -> dict:
    return torch.load("runs/airline_passengers/version_0/checkpoints/last.ckpt", weights_only=True)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with")
class TestRecipe:
    def test_it_is_what_a_regression_without_a_length_takes_and_its_configuration_says_so(self, short):
        config = fit()
        assert last()["global_step"] == 23
        trainer, kept = config["trainer"], config["last"]
        assert (trainer["max_steps"], trainer["max_epochs"]) == (23, -1)
        assert (trainer["val_check_interval"], trainer["check_val_every_n_epoch"]) == (5, None)
        assert (kept["every_n_train_steps"], kept["every_n_epochs"]) == (5, 23)
        (average,) = trainer["callbacks"]
        assert average == {"class_path": "ika_lightning.callbacks.AveragedWeights", "init_args": {"decay": 0.9}}
        # at the end of its schedule
        assert last()["lr_schedulers"][0]["progress"] == 1.0
        assert config["model"]["init_args"]["ensemble"] == last()["hyper_parameters"]["ensemble"] == 2
        assert any(key.startswith("net.members.1.") for key in last()["state_dict"])

    @pytest.mark.parametrize("count", [1, 3])
    def test_as_many_networks_as_are_said(self, count, short):
        assert fit("--model.ensemble", str(count))["model"]["init_args"]["ensemble"] == count
        assert last()["hyper_parameters"]["ensemble"] == count

    @pytest.mark.parametrize("count", [None, 1, 3])
    def test_one_that_starts_from_another_has_as_many_networks(self, count, short):
        fit(*([] if count is None else ["--model.ensemble", str(count)]))
        start = Path("runs/airline_passengers/version_0/checkpoints/last.ckpt").rename("start.ckpt")
        main(["fit", *ROWS, *QUIET, "--model.init_from", str(start)])
        run = Path("runs/airline_passengers/version_1")
        saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["hyper_parameters"]["ensemble"] == (count or 2) and saved["global_step"] == 23
        main(["test", *QUIET[:4], "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])

    def test_what_else_is_said_stays(self, short):
        config = fit(
            "--trainer.val_check_interval",
            "3",
            "--trainer.check_val_every_n_epoch",
            "null",
            "--last.every_n_epochs",
            "7",
        )
        assert config["trainer"]["val_check_interval"] == 3
        assert config["last"]["every_n_epochs"] == 7
        assert last()["global_step"] == 23

    def test_a_time_takes_the_place_of_the_updates(self, short):
        config = fit("--trainer.max_time", "00:00:00:02")
        assert (config["trainer"]["max_steps"], config["trainer"]["max_epochs"]) == (-1, -1)
        assert last()["lr_schedulers"][0]["progress"] > 0.9

    @pytest.mark.parametrize(("option", "number", "updates"), [("max_steps", 3, 3), ("max_epochs", 2, 2)])
    def test_a_length_that_is_given_counts_and_nothing_is_averaged(self, option, number, updates, short):
        config = fit(f"--trainer.{option}", str(number))
        assert last()["global_step"] == updates
        assert config["trainer"]["callbacks"] is None
        assert config["model"]["init_args"]["ensemble"] is None
        assert not any("members" in key for key in last()["state_dict"])
        assert config["trainer"]["check_val_every_n_epoch"] == 1


def test_tasks_without_a_recipe_have_200_epochs() -> None:
    from jsonargparse import Namespace

    from ika_lightning.cli.length import set_length

    def length(**options) -> tuple[int | None, int]:
        trainer = {"max_epochs": None, "max_steps": -1, "max_time": None, **options}
        config = Namespace(
            {"trainer": Namespace(trainer), "model": Namespace(class_path="ika_lightning.tasks.Translation")}
        )
        set_length(config)
        return config.trainer.max_epochs, config.trainer.max_steps

    assert length() == (200, -1)
    assert length(max_time="00:00:01:00") == (-1, -1)
    assert length(max_steps=7) == (None, 7)
    assert length(max_epochs=7) == (7, -1)
