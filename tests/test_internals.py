"""What other libraries do not promise is still there: each test fails when one of them changes."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from sacrebleu.metrics import BLEU, CHRF
from torchmetrics import MeanMetric

from ika_lightning import internals
from ika_lightning.attention import RBF
from ika_lightning.attention.backends import prices
from ika_lightning.attention.regulariser import is_in_backward
from ika_lightning.cli.logs import Metrics
from ika_lightning.models import AttentionFactory


def trainer(**options: Any) -> Trainer:
    return Trainer(accelerator="cpu", **{"logger": False, "enable_checkpointing": False, **options})


def test_a_function_whose_result_the_compiler_takes_for_a_constant() -> None:
    def theirs() -> None: ...

    torch.compiler.assume_constant_result(theirs)
    assert vars(theirs) == vars(prices._prices) == {"_dynamo_marked_constant": True}


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_a_forward_within_the_backward(reentrant: bool) -> None:
    found: list[bool] = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        found.append(is_in_backward())
        return x.sin()

    x = torch.ones(3, requires_grad=True)
    torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=reentrant).sum().backward()
    assert found == [False, True] and not is_in_backward()


def test_a_module_knows_its_trainer() -> None:
    model = LightningModule()
    assert internals.trainer_of(model) is None
    model.trainer = owner = trainer()
    assert internals.trainer_of(model) is owner


def test_the_state_of_the_loops() -> None:
    """One step later, but for the batch that was fetched, it is what it was before it."""

    class Watched(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.states: list[dict[str, Any]] = []

        def training_step(self, *args: Any) -> torch.Tensor:
            return 2 * self.weight

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def on_train_batch_end(self, *args: Any) -> None:
            self.states.append(self.trainer.fit_loop.state_dict())

        def on_train_batch_start(self, *args: Any) -> None:
            self.states.append(self.trainer.fit_loop.state_dict())

    model = Watched()
    fit = trainer(max_steps=3, limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False)
    fit.fit(model, torch.utils.data.DataLoader(range(5)))
    # the end of the first batch, and the beginning of the second
    before, after = model.states[1]["epoch_loop.batch_progress"], model.states[2]
    assert after["epoch_loop.batch_progress"]["current"]["ready"] == before["current"]["ready"] + 1
    internals.end_of_batch_before(after)
    assert after["epoch_loop.batch_progress"]["current"]["ready"] == before["current"]["ready"]
    assert isinstance(fit.fit_loop._restarting, bool) and not internals.is_requeued(fit)
    internals.finish_schedulers(fit)
    assert fit.fit_loop._restarting is False


def test_a_validation_between_batches(tmp_path: Path) -> None:
    """And checkpoints that forget what was best: the training is what it is without, and goes on."""

    class Counting(LightningModule):
        def __init__(self, asks: bool) -> None:
            super().__init__()
            self.weight, self.asks, self.measured = torch.nn.Parameter(torch.zeros(())), asks, 0

        def on_train_epoch_start(self) -> None:
            if self.asks and self.current_epoch == 1:
                self.trainer.callback_metrics.clear()
                internals.validate_now(self.trainer)
                assert self.training and self.trainer.training and "val/loss" in self.trainer.callback_metrics
                assert best.best_model_score == 1.0 and Path(best.best_model_path).is_file()
                internals.forget_best(self.trainer)
                assert best.best_model_score is None

        def training_step(self, batch: torch.Tensor, *args: Any) -> torch.Tensor:
            return (self.weight - batch).square().sum()

        def validation_step(self, batch: torch.Tensor, *args: Any) -> None:
            self.measured += 1
            self.log("val/loss", 1.0 + self.current_epoch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    found = []
    for asks in (False, True):
        best, model = ModelCheckpoint(tmp_path / str(asks), "best", monitor="val/loss"), Counting(asks)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
        fit = trainer(max_epochs=2, enable_checkpointing=True, callbacks=[best], **quiet)
        loaders = [torch.utils.data.DataLoader(torch.arange(size).float()) for size in (5, 2)]
        fit.fit(model, *loaders)
        assert model.measured == (6 if asks else 4)
        # that of the first epoch is better, where it is not forgotten
        assert best.best_model_score == (2.0 if asks else 1.0)
        found.append(model.weight.item())
    assert found[0] == found[1]


def test_a_metric_counts_its_updates() -> None:
    metric = MeanMetric()
    assert not metric.update_called
    internals.mark_updated(metric)
    assert metric.update_called


@pytest.mark.parametrize(("most", "shown"), [(7, "Epoch 5/6"), (-1, "Epoch 5")])
def test_the_progress_bar_tells_the_last_epoch_if_there_is_one(most: int, shown: str) -> None:
    pytest.importorskip("rich", reason="without it, Lightning's other bar tells no last epoch")
    bar = internals.EpochProgressBar()
    bar.setup(trainer(max_epochs=most), LightningModule(), "fit")
    assert bar._get_train_description(5).rstrip() == shown


def test_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, table = TensorBoardLogger(tmp_path, name=None), CSVLogger(tmp_path, name=None)
    for logger in (board, table):
        assert internals.version_of(logger) is None
        internals.set_version(logger, 7)
        assert internals.version_of(logger) == 7 and logger.log_dir.endswith("version_7")
    internals.purge_from(board, 3)
    given: dict[str, Any] = {}
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.__init__", lambda *_, **options: given.update(options))
    assert board.experiment is not None and given["purge_step"] == 3
    writer = Metrics(table.log_dir, 0)
    internals.use_writer(table, writer)
    assert table.experiment is writer


def test_the_finder_of_batch_sizes() -> None:
    assert internals.argument_of_finder(BatchSizeFinder(batch_arg_name="batch_tokens")) == "batch_tokens"


def test_options_of_a_parser() -> None:
    parser = ArgumentParser()
    parser.add_argument("--width", type=int)
    assert "width" in internals.option_names(parser)


def test_what_jsonargparse_makes_of_a_class_that_is_called_later() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attention", type=AttentionFactory)
    made = parser.instantiate(parser.parse_args(["--attention=RBF", "--attention.p=1.5"])).attention
    layer, arguments = internals.unwrap_factory(made)
    assert layer is RBF and arguments["p"] == 1.5
    assert internals.unwrap_factory(functools.partial(RBF, 8)) == (None, {})


@pytest.mark.parametrize("scorer", [BLEU(), CHRF()])
def test_scores_of_counts(scorer: Any) -> None:
    written, references = ["Two dogs run .", "a cat"], ["Two dogs run in the snow .", "the cat"]
    counts = torch.tensor(internals.corpus_statistics(scorer, written, references)).sum(0).tolist()
    assert internals.score_of_statistics(scorer, counts) == scorer.corpus_score(written, [references]).score > 0
