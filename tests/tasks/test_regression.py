import functools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch.testing import assert_close
from torch.utils.data import DataLoader

from ika_lightning.attention import IKAN, MIKAN, RBF, DotProduct, IKANDirect, attention_kl
from ika_lightning.callbacks import AveragedWeights
from ika_lightning.callbacks.predictions import PredictionWriter
from ika_lightning.data import RegressionData
from ika_lightning.data.encoders import RowBatch
from ika_lightning.models import SpectralDraws
from ika_lightning.tasks import Regression, WarmupCosine
from ika_lightning.tasks.uncertainty import FLOOR, Answer, conformal_radius, gaussian, gaussian_crps, gaussian_nll

LAYERS = [DotProduct, RBF, IKANDirect, IKAN, MIKAN]
SMALL = {"width": 16, "depth": 1, "num_heads": 2, "dropout": 0.0}


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A smooth function of two columns, in units far from 0 and 1."""
    x = np.random.default_rng(0).uniform(-1, 1, (151, 2))
    y = 1e4 + 50 * (np.sin(3 * x[:, 0]) + x[:, 1] ** 2)
    pd.DataFrame({"a": x[:, 0], "b": 1e6 + x[:, 1], "y": y}).to_csv(tmp_path / "table.csv", index=False)
    return str(tmp_path / "table.csv")


def data(table: str, **options) -> RegressionData:
    return RegressionData(**{"path": table, "target": "y", "batch_size": 61, **options})


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        log_every_n_steps=1, **options,
    )  # fmt: skip


@pytest.fixture
def trained(table, tmp_path) -> tuple[Regression, RegressionData, Path]:
    seed_everything(0, verbose=False)
    model, rows = Regression(functools.partial(MIKAN, p=1.8), **SMALL), data(table)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(model, rows)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    return model.eval(), rows, tmp_path / "model.ckpt"


@pytest.mark.parametrize("attention", LAYERS)
def test_it_learns(attention, table, tmp_path) -> None:
    seed_everything(0, verbose=False)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    model, rows = Regression(attention, **SMALL, optimizer=optimizer), data(table)
    fit = trainer(tmp_path, max_epochs=60, check_val_every_n_epoch=60)
    fit.fit(model, rows)
    (measured,) = fit.test(model, rows, verbose=False)
    assert measured["test/r2"] > 0.9


def test_the_default_is_the_papers_estimator_and_can_be_named(table, tmp_path) -> None:
    model, rows = Regression(**SMALL), data(table)
    layer = model.attention(8, 2)
    assert isinstance(layer, IKANDirect) and layer.core.kernel is None and layer.core.share is None
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, rows)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]["attention"]
    assert saved == {"class_path": "ika_lightning.attention.IKANDirect", "init_args": {"init": "rbf"}}
    loaded = Regression.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert loaded.net.encoder.layers[0].attention.core.kernel is None
    assert Regression(IKANDirect).attention(8, 2).core.kernel is not None


def test_figures_are_in_the_units_of_the_target(trained, tmp_path) -> None:
    model, rows, _ = trained
    (measured,) = trainer(tmp_path).test(model, rows, verbose=False)
    table = pd.read_csv(rows.path)
    batches = list(rows.test_dataloader())
    index = torch.cat([batch.row for batch in batches]).numpy()
    predicted = torch.cat([model.predict_step(batch, 0) for batch in batches]).detach().numpy()
    true = table["y"].to_numpy()[index]
    assert len(index) == 15
    assert measured["test/rmse"] == pytest.approx(np.sqrt(np.mean((predicted - true) ** 2)), rel=1e-4)
    assert measured["test/mae"] == pytest.approx(np.mean(np.abs(predicted - true)), rel=1e-4)
    # of the share that is left, as R2 itself is near 0 after so short a training
    left = np.sum((predicted - true) ** 2) / np.sum((true - true.mean()) ** 2)
    assert 1 - measured["test/r2"] == pytest.approx(left)
    assert measured["test/loss"] == pytest.approx(np.mean((predicted - true) ** 2) / rows.target_std**2, rel=1e-4)


def test_one_row_has_no_r2(trained, tmp_path) -> None:
    model, rows, path = trained
    pd.read_csv(rows.path).iloc[:1].to_csv(tmp_path / "one.csv", index=False)
    one = data(rows.path, test_path=str(tmp_path / "one.csv"))
    (measured,) = trainer(tmp_path).test(model, one, ckpt_path=path, weights_only=True, verbose=False)
    assert sorted(measured) == ["test/coverage", "test/loss", "test/mae", "test/rmse", "test/width"]


def test_training_loss_is_squared_error_and_kl(trained, table, tmp_path) -> None:
    model, rows, _ = trained
    model.train()
    model.kl_weight = 3.0
    model.log = lambda *args, **kwargs: None
    batch = next(iter(rows.train_dataloader()))
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    torch.manual_seed(1)
    queries, context = batch.features[:30], batch.features[30:]  # half of 61, rounded down
    answers = model.net(context, queries, batch.target[30:])
    kl = attention_kl(model)
    assert kl > 0
    assert_close(loss, (answers - batch.target[:30]).square().mean() + 3.0 * kl)


def test_query_fraction(trained) -> None:
    model, rows, _ = trained
    model.log = lambda *args, **kwargs: None
    model.query_fraction = 0.2
    sizes: list[int] = []
    model.net.register_forward_pre_hook(lambda net, inputs: sizes.extend(len(part) for part in inputs))
    model.training_step(next(iter(rows.train_dataloader())), 0)
    assert sizes == [49, 12, 49]  # context, queries and targets of the context, of 61
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"query_fraction must be between 0 and 1, got {wrong}"):
            Regression(query_fraction=wrong)


class TestTargetsInTheContext:
    def training_gradient(self, model, batch) -> torch.Tensor:
        """What the answers of a training batch depend on."""
        model.train().net.requires_grad_(False)
        answers = []
        model.net.register_forward_hook(lambda net, inputs, outputs: answers.append(outputs))
        target = batch.target.clone().requires_grad_()
        model.loss(batch._replace(target=target))
        (of_target,) = torch.autograd.grad(answers[0].sum(), target)
        return of_target

    @pytest.mark.parametrize("attention", LAYERS)
    def test_a_row_that_asks_never_knows_its_own_target_nor_that_of_others_who_ask(self, attention, table, tmp_path):
        model, rows = Regression(attention, **SMALL), data(table)
        trainer(tmp_path, max_epochs=1).fit(model, rows)
        of_target = self.training_gradient(model, next(iter(rows.train_dataloader())))
        assert (of_target[:30] == 0).all()
        assert (of_target[30:] != 0).all()

    def test_an_answer_does_not_change_with_the_target_of_its_row(self, trained):
        model, rows, _ = trained
        (batch,) = rows.test_dataloader()
        assert_close(model(batch._replace(target=batch.target + 7).features), model(batch.features), rtol=0, atol=0)

    def test_answers_change_with_the_targets_of_the_context(self, trained):
        model, rows, _ = trained
        (batch,) = rows.test_dataloader()
        assert_close(model.context_target, rows.context_target, rtol=0, atol=0)
        before = model(batch.features)
        order = torch.randperm(len(model.context))
        model.context_target = model.context_target[order]
        assert not torch.isclose(model(batch.features), before, rtol=0, atol=1e-7).any()
        model.context = model.context[order]
        assert_close(model(batch.features), before, rtol=1e-4, atol=1e-5)

    def test_context_and_targets_are_of_the_same_rows(self, table, tmp_path):
        rows = data(table, max_context=17)
        rows.setup("fit")
        whole = rows.encoded("train")
        places = [(whole.features == row).all(1).nonzero().item() for row in rows.context]
        assert len(set(places)) == 17
        assert_close(rows.context_target, whole.target[places], rtol=0, atol=0)


@pytest.mark.parametrize(("option", "earlier"), [("context_targets", False), ("embedding", "linear")])
def test_a_checkpoint_of_an_earlier_version(option, earlier, table, tmp_path) -> None:
    model, rows, path = Regression(RBF, **SMALL, **{option: earlier}), data(table), tmp_path / "earlier.ckpt"
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, rows)
    fit.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    del saved["hyper_parameters"][option]
    torch.save(saved, path)
    (batch,) = rows.test_dataloader()
    loaded = Regression.load_from_checkpoint(path, weights_only=True)
    assert_close(loaded.eval()(batch.features), model.eval()(batch.features), rtol=0, atol=0)
    # the command line gives options of today
    today = Regression(RBF, **SMALL)
    trainer(tmp_path).test(today, rows, ckpt_path=path, weights_only=True, verbose=False)
    assert_close(today.eval()(batch.features), model(batch.features), rtol=0, atol=0)
    what = rf"another network, with {option}={earlier!r} \(here {today_of(option)!r}\)"
    with pytest.raises(ValueError, match=what):
        trainer(tmp_path, max_epochs=1).fit(Regression(RBF, **SMALL, init_from=str(path)), data(table))


def today_of(option: str) -> object:
    return Regression().hparams[option]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embedding": "wave"}, "embedding must be one of 'linear', 'periodic', got 'wave'"),
        ({"frequency_scale": 0.0}, "frequency_scale must be positive and finite, got 0.0"),
        ({"frequency_scale": math.nan}, "frequency_scale must be positive and finite, got nan"),
    ],
)
def test_embeddings_that_are_none(wrong, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Regression(**wrong)


def scores_of(model: Regression, batch) -> torch.Tensor:
    """How far targets are from answers, ascending."""
    answer = model.answer(batch.features)
    error = (batch.target - answer.mean).abs().detach()
    return (error / answer.std.detach() if model.has_likelihood else error).sort().values


@pytest.fixture(params=[None, "gaussian"])
def sure(request, table, tmp_path) -> tuple[Regression, RegressionData, Path]:
    """A model that was validated at its end, without a likelihood and with one."""
    seed_everything(0, verbose=False)
    model, rows = Regression(IKANDirect, **SMALL, likelihood=request.param, interval=0.8), data(table)
    fit = trainer(tmp_path, max_epochs=3)
    fit.fit(model, rows)
    fit.save_checkpoint(tmp_path / "sure.ckpt")
    return model.eval(), rows, tmp_path / "sure.ckpt"


class TestLikelihood:
    @pytest.fixture
    def distribution(self, table, tmp_path) -> tuple[Regression, RegressionData]:
        seed_everything(0, verbose=False)
        model, rows = Regression(MIKAN, **SMALL, likelihood="gaussian"), data(table)
        trainer(tmp_path, max_epochs=2).fit(model, rows)
        return model.eval(), rows

    def test_figures_are_in_the_units_of_the_target(self, distribution, tmp_path):
        model, rows = distribution
        (measured,) = trainer(tmp_path).test(model, rows, verbose=False)
        (batch,) = rows.test_dataloader()
        mean, std = model.predict_step(batch, 0).detach().unbind(-1)
        true = torch.from_numpy(pd.read_csv(rows.path)["y"].to_numpy()[batch.row])
        wanted = {
            "rmse": (true - mean).square().mean().sqrt(),
            "mae": (true - mean).abs().mean(),
            "nll": gaussian_nll(mean, std, true).mean(),
            "crps": gaussian_crps(mean, std, true).mean(),
        }
        for name, value in wanted.items():
            assert measured[f"test/{name}"] == pytest.approx(value.item(), rel=1e-4), name
        assert measured["test/loss"] == pytest.approx(measured["test/nll"] - math.log(rows.target_std), rel=1e-5)

    def test_the_training_loss(self, distribution):
        model, rows = distribution
        batch = next(iter(rows.train_dataloader()))
        mean, std = gaussian(model.net(batch.features[30:], batch.features[:30], batch.target[30:]))
        wanted = (std * gaussian_nll(mean, std, batch.target[:30])).mean()
        found = model.loss(batch)
        assert_close(found.mean, wanted)
        assert found.samples == 30

    def test_it_learns_where_the_noise_is(self, tmp_path):
        """The target is noise, of a deviation of 1 to the left and of 10 to the right."""
        rng = np.random.default_rng(0)
        x = rng.uniform(-1, 1, 401)
        y = 100.0 + rng.standard_normal(401) * np.where(x < 0, 1, 10)
        pd.DataFrame({"x": x, "y": y}).to_csv(tmp_path / "noise.csv", index=False)
        seed_everything(0, verbose=False)
        optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
        model = Regression(RBF, **SMALL, likelihood="gaussian", optimizer=optimizer)
        rows = data(str(tmp_path / "noise.csv"))
        fit = trainer(tmp_path, max_epochs=30, check_val_every_n_epoch=30)
        fit.fit(model, rows)
        ask = torch.tensor([[-0.5], [0.5]]) / x.std()
        left, right = model.eval().answer(ask).std * rows.target_std
        assert 0.7 < left < 1.8 and 7 < right < 14

    def test_rows_that_are_known_by_heart_leave_it_finite(self, tmp_path):
        """Every row is there many times, and training is long: the likelihood has no other bound than the floor."""
        table = pd.DataFrame({"x": [0.0, 1.0, 2.0], "y": [5.0, 5.0, 6.0]})
        pd.concat([table] * 30).to_csv(tmp_path / "again.csv", index=False)
        seed_everything(0, verbose=False)
        optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
        model = Regression(RBF, **SMALL, likelihood="gaussian", optimizer=optimizer)
        rows = data(str(tmp_path / "again.csv"))
        fit = trainer(tmp_path, max_epochs=-1, max_steps=400, check_val_every_n_epoch=None, val_check_interval=200)
        fit.fit(model, rows)
        (measured,) = fit.test(model, rows, verbose=False)
        assert all(map(math.isfinite, measured.values())) and all(p.isfinite().all() for p in model.parameters())
        (batch,) = rows.test_dataloader()
        std = model.eval().answer(batch.features).std
        assert (std >= FLOOR).all() and std.min() < 0.1

    def test_validation_targets_that_are_all_the_same(self, table, tmp_path):
        rows = pd.read_csv(table)
        rows.loc[121:, "y"] = 1e4
        rows.to_csv(table, index=False)
        model, constant = Regression(RBF, **SMALL, likelihood="gaussian"), data(table, split="ordered")
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(model, constant)
        (measured,) = fit.test(model, constant, verbose=False)
        assert all(math.isfinite(measured[f"test/{name}"]) for name in ("loss", "nll", "crps", "coverage", "width"))

    def test_a_distribution_never_depends_on_its_target_nor_on_what_else_is_asked(self, distribution):
        model, rows = distribution
        (batch,) = rows.test_dataloader()
        together = model.predict_step(batch, 0)
        assert together.shape == (15, 2) and together.dtype == torch.float64
        other_targets = model.predict_step(batch._replace(target=batch.target + 7), 0)
        assert_close(other_targets, together, rtol=0, atol=0)
        assert_close(
            torch.cat([model.predict_step(batch.take(part), 0) for part in torch.arange(15).split(4)]), together
        )
        batch.features[0] += 5
        assert_close(model.predict_step(batch, 0)[1:], together[1:], rtol=0, atol=0)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"likelihood": "poisson"}, "^likelihood must be one of 'gaussian', got 'poisson'$"),
            *[
                ({"interval": wrong}, f"^interval must be between 0 and 1, such as 0.9, got {wrong}$")
                for wrong in (0, 1, 1.5, -0.1, 90, math.nan)
            ],
        ],
    )
    def test_wrong(self, options, message):
        with pytest.raises(ValueError, match=message):
            Regression(**options)


class TestEnsemble:
    def test_two_without_a_likelihood_have_no_spread(self, table, tmp_path):
        model, rows = Regression(IKANDirect, **SMALL, ensemble=2), data(table)
        trainer(tmp_path, max_epochs=1).fit(model, rows)
        (batch,) = rows.test_dataloader()
        model.eval()
        outputs = torch.stack(self.members(model, model.context, batch.features, model.context_target))
        mean, std = model.answer(batch.features)
        assert std is None and (outputs[0] != outputs[1]).all()
        assert_close(mean, outputs.mean(0))
        assert_close(model.predict_step(batch, 0), rows.target_mean + rows.target_std * mean.double())

    @pytest.fixture(params=[None, "gaussian"])
    def three(self, request, table, tmp_path) -> tuple[Regression, RegressionData]:
        seed_everything(0, verbose=False)
        options = SMALL | {"dropout": 0.2}
        model, rows = Regression(MIKAN, **options, likelihood=request.param, ensemble=3), data(table)
        fit = trainer(tmp_path, max_epochs=2)
        fit.fit(model, rows)
        fit.save_checkpoint(tmp_path / "three.ckpt")
        return model, rows

    def members(self, model: Regression, *rows: torch.Tensor) -> list[torch.Tensor]:
        return [member(*rows) for member in model.net.members]

    def test_the_answer_is_the_mixture(self, three):
        model, rows = three
        (batch,) = rows.test_dataloader()
        model.eval()
        outputs = torch.stack(self.members(model, model.context, batch.features, model.context_target))
        mean, std = model.answer(batch.features)
        if model.has_likelihood:
            means, stds = gaussian(outputs)
            variance = stds.square().mean(0) + means.var(0, correction=0)
        else:
            means = outputs
            variance = means.var(0, correction=0)
        assert (means[0] != means[1]).all()
        assert_close(mean, means.mean(0))
        assert_close(std.square(), variance)
        assert_close(model(batch.features), mean, rtol=0, atol=0)
        of_files = model.predict_step(batch, 0)
        assert_close(of_files, torch.stack([rows.target_mean + rows.target_std * mean.double(),
                                            rows.target_std * std.double()], -1))  # fmt: skip

    def test_the_loss_is_the_mean_over_members_and_each_has_noise_of_its_own(self, three):
        model, rows = three
        model.log = lambda *args, **kwargs: None
        batch = next(iter(rows.train_dataloader()))
        model.train()
        torch.manual_seed(1)
        loss = model.training_step(batch, 0)
        torch.manual_seed(1)
        target, losses = batch.target[:30], []
        for member in model.net.members:
            raw = member(batch.features[30:], batch.features[:30], batch.target[30:])
            if raw.dim() == 1:
                own = (raw - target).square()
            else:
                mean, std = gaussian(raw)
                own = std * gaussian_nll(mean, std, target)
            losses.append(own.mean() + model.kl_weight * attention_kl(member))
        assert_close(loss, torch.stack(losses).mean())
        # the same weights do not answer the same, as dropout and frequencies are drawn anew for each
        first, second = model.net.members[:2]
        second.load_state_dict(first.state_dict())
        one, other = self.members(model, batch.features[30:], batch.features[:30], batch.target[30:])[:2]
        assert (one != other).all()

    def test_the_measures_are_of_what_is_predicted(self, three, tmp_path):
        model, rows = three
        (measured,) = trainer(tmp_path).test(model, rows, verbose=False)
        (batch,) = rows.test_dataloader()
        mean, std = model.eval().answer(batch.features)
        error = (batch.target - mean).detach()
        wanted = gaussian_nll(mean, std, batch.target).mean() if model.has_likelihood else error.square().mean()
        assert measured["test/loss"] == pytest.approx(wanted.item(), rel=1e-5)
        assert measured["test/rmse"] == pytest.approx(rows.target_std * error.square().mean().sqrt().item(), rel=1e-5)
        assert "test/crps" in measured or not model.has_likelihood
        (held_out,) = rows.val_dataloader()
        assert_close(model.intervals.scores, scores_of(model, held_out))

    def test_a_checkpoint_brings_all_of_them(self, three, tmp_path):
        model, rows = three
        (batch,) = rows.test_dataloader()
        loaded = Regression.load_from_checkpoint(tmp_path / "three.ckpt", weights_only=True)
        assert_close(loaded.eval().answer(batch.features), model.eval().answer(batch.features), rtol=0, atol=0)

    def test_one_is_no_ensemble(self, table, tmp_path):
        """Neither by its keys nor by its numbers."""
        found = []
        for options in ({}, {"ensemble": 1}):
            seed_everything(0, verbose=False)
            model = Regression(IKANDirect, **SMALL, **options)
            trainer(tmp_path, max_epochs=1).fit(model, data(table))
            found.append(model.state_dict())
        assert all(
            key.startswith(("net.embed", "net.target", "net.encoder", "net.head", "context")) for key in found[1]
        )
        assert_close(*found, rtol=0, atol=0)

    def test_where_nobody_says_how_many_the_checkpoint_does(self, three, tmp_path):
        _, rows = three
        path = tmp_path / "three.ckpt"
        start = torch.load(path, weights_only=True)
        likelihood = start["hyper_parameters"]["likelihood"]
        for ensemble in (None, 3):
            other = Regression(MIKAN, **SMALL, likelihood=likelihood, ensemble=ensemble)
            trainer(tmp_path).test(other, rows, ckpt_path=path, verbose=False)
            assert other.hparams["ensemble"] == 3
            assert_close(other.net.state_dict()["members.2.head.bias"], start["state_dict"]["net.members.2.head.bias"])
        other = Regression(MIKAN, **SMALL, likelihood=likelihood, ensemble=2)
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*members\.2\."):
            trainer(tmp_path).test(other, rows, ckpt_path=path, verbose=False)

    def test_it_has_nothing_to_start_from_a_single_one(self, sure, table, tmp_path):
        model, _, path = sure
        other = Regression(IKANDirect, **SMALL, ensemble=2, likelihood=model.hparams["likelihood"], init_from=str(path))
        with pytest.raises(ValueError, match=r"sure.ckpt has another network, with ensemble=1 \(here 2\)"):
            trainer(tmp_path, max_epochs=1).fit(other, data(table))

    @pytest.mark.parametrize("wrong", [0, -3])
    def test_wrong(self, wrong):
        with pytest.raises(ValueError, match=f"^ensemble must be at least 1, got {wrong}$"):
            Regression(ensemble=wrong)


class TestDraws:
    @pytest.fixture(params=[None, "gaussian"])
    def four(self, request, table, tmp_path) -> tuple[Regression, RegressionData, Path]:
        model, rows = Regression(MIKAN, **SMALL, likelihood=request.param, ensemble=2, draws=4), data(table)
        fit = trainer(tmp_path, max_epochs=2)
        fit.fit(model, rows)
        fit.save_checkpoint(tmp_path / "four.ckpt")
        return model.eval(), rows, tmp_path / "four.ckpt"

    def test_the_answer_is_the_mixture_over_draws_and_members(self, four):
        model, rows, _ = four
        (batch,) = rows.test_dataloader()
        outputs = SpectralDraws(model.net, 4)(model.context, batch.features, model.context_target)
        parts = Answer(outputs, None) if model.hparams["likelihood"] is None else gaussian(outputs)
        variance = parts.mean.flatten(0, 1).var(0, correction=0)
        if parts.std is not None:
            variance = variance + parts.std.square().mean((0, 1))
        assert outputs.shape[:3] == (4, 2, len(batch.features))
        assert_close(model.answer(batch.features), Answer(parts.mean.mean((0, 1)), variance.sqrt()))

    def test_training_is_what_it_is_without(self, table, tmp_path):
        found = []
        for draws in (1, 3):
            seed_everything(0, verbose=False)
            other = Regression(MIKAN, **SMALL, draws=draws)
            trainer(tmp_path, max_epochs=1).fit(other, data(table))
            found.append(other.state_dict())
        assert_close(*found, rtol=0, atol=0)

    def test_intervals_are_of_as_many_draws(self, four):
        model, rows, path = four
        (batch,) = rows.val_dataloader()
        assert_close(model.intervals.scores, scores_of(model, batch))
        same = Regression.load_from_checkpoint(path, weights_only=True)
        other = Regression.load_from_checkpoint(path, weights_only=True, draws=1)
        assert_close(same.eval().answer(batch.features), model.answer(batch.features), rtol=0, atol=0)
        assert torch.equal(same.intervals.scores, model.intervals.scores) and other.intervals.scores is None
        assert other.intervals.why_none == "the weights were validated with draws=4, not 1; leave draws at 4"

    def test_kernels_without_samples_of_noise_have_none(self, table, tmp_path):
        with pytest.raises(ValueError, match="draws are of implicit spectra, and the network has none"):
            trainer(tmp_path, max_epochs=1).fit(Regression(IKANDirect, **SMALL, draws=2), data(table))
        with pytest.raises(ValueError, match=r"^draws must be at least 1, got 0$"):
            Regression(IKAN, draws=0)


class TestIntervals:
    def test_scores_are_those_of_the_validated_rows(self, sure):
        model, rows, _ = sure
        (batch,) = rows.val_dataloader()
        assert_close(model.intervals.scores, scores_of(model, batch))
        # ceil(16 * 0.8) of 15
        assert (
            model.intervals.radius == model.intervals.scores[12].item() == conformal_radius(model.intervals.scores, 0.8)
        )

    def test_the_checkpoint_keeps_them(self, sure):
        model, _, path = sure
        assert torch.equal(torch.load(path, weights_only=True)["calibration"], model.intervals.scores)
        loaded = Regression.load_from_checkpoint(path, weights_only=True)
        assert (
            torch.equal(loaded.intervals.scores, model.intervals.scores)
            and loaded.intervals.radius == model.intervals.radius
        )
        # of which another interval can be made
        assert (
            Regression.load_from_checkpoint(path, interval=0.5, weights_only=True).intervals.radius
            == model.intervals.scores[7]
        )

    def test_coverage_and_width_are_measured_on_test_rows(self, sure, tmp_path):
        model, rows, path = sure
        model = Regression.load_from_checkpoint(path, interval=0.4, weights_only=True).eval()
        (measured,) = trainer(tmp_path).test(model, rows, ckpt_path=path, weights_only=True, verbose=False)
        (batch,) = rows.test_dataloader()
        mean, _, lower, upper = model.complete_predictions(model.predict_step(batch, 0))
        true = torch.from_numpy(pd.read_csv(rows.path)["y"].to_numpy()[batch.row])
        inside = (lower <= true) & (true <= upper)
        assert 0 < inside.sum() < 15
        assert measured["test/coverage"] == pytest.approx(inside.double().mean().item())
        assert measured["test/width"] == pytest.approx((upper - lower).mean().item(), rel=1e-5)
        assert_close((lower + upper) / 2, mean)

    def test_validation_measures_none(self, sure, tmp_path):
        model, rows, path = sure
        (measured,) = trainer(tmp_path).validate(model, rows, ckpt_path=path, weights_only=True, verbose=False)
        assert measured.keys() == {f"val/{name}" for name in ("loss", "mae", "r2", "rmse")} | (
            {"val/crps", "val/nll"} if model.has_likelihood else set()
        )

    def test_an_interval_never_depends_on_what_else_is_asked(self, sure):
        model, rows, _ = sure
        (batch,) = rows.test_dataloader()
        together = model.complete_predictions(model.predict_step(batch, 0))
        alone = model.complete_predictions(model.predict_step(batch.take(torch.tensor([3])), 0))
        for ours, single in zip(together, alone, strict=True):
            if ours is not None:
                assert_close(ours[3:4], single)

    def test_scores_of_other_weights_are_none(self, sure, tmp_path):
        model, rows, _ = sure
        fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
        fit.fit(model.train(), rows)
        assert model.intervals.scores is None and model.intervals.radius == math.inf
        fit.save_checkpoint(tmp_path / "later.ckpt")
        assert "calibration" not in torch.load(tmp_path / "later.ckpt", weights_only=True)
        assert "test/coverage" not in fit.test(model, rows, verbose=False)[0]

    def test_nor_of_the_same_weights_with_another_context(self, sure, table, tmp_path):
        model, _, _ = sure
        trainer(tmp_path, max_steps=0, limit_val_batches=0).fit(model.train(), data(table, seed=1))
        assert model.intervals.scores is None

    def test_a_few_batches_for_a_check_are_no_validation(self, table, tmp_path):
        model = Regression(RBF, **SMALL)
        trainer(tmp_path, max_steps=0, num_sanity_val_steps=2).fit(model, data(table))
        assert model.intervals.scores is None

    @pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with")
    def test_averaged_weights_have_their_own(self, table, tmp_path):
        """Those of a checkpoint belong to the weights that are in it, whatever the training goes on with."""
        saved = []

        class Keep(Callback):
            def on_validation_end(self, trainer, pl_module):
                if not trainer.sanity_checking:
                    saved.append(tmp_path / f"{trainer.global_step}.ckpt")
                    trainer.save_checkpoint(saved[-1])

        seed_everything(0, verbose=False)
        model, rows = Regression(IKANDirect, **SMALL, likelihood="gaussian"), data(table)
        trainer(tmp_path, max_epochs=3, callbacks=[AveragedWeights(0.9), Keep()]).fit(model, rows)
        (batch,) = rows.val_dataloader()
        assert len(saved) == 3
        for path in saved:
            loaded = Regression.load_from_checkpoint(path, weights_only=True).eval()
            assert_close(loaded.intervals.scores, scores_of(loaded, batch))
        # the last update was validated, and the model has the averaged weights at the end
        assert_close(model.intervals.scores, scores_of(model.eval(), batch))

    def test_a_checkpoint_of_an_earlier_version_has_none(self, sure, tmp_path):
        model, rows, path = sure
        saved = torch.load(path, weights_only=True)
        del saved["calibration"], saved["hyper_parameters"]["interval"]
        if not model.has_likelihood:
            del saved["hyper_parameters"]["likelihood"]
        torch.save(saved, path)
        (measured,) = trainer(tmp_path).test(model, rows, ckpt_path=path, weights_only=True, verbose=False)
        assert "test/coverage" not in measured and "test/width" not in measured
        (batch,) = rows.test_dataloader()
        loaded = Regression.load_from_checkpoint(path, weights_only=True).eval()
        predictions = loaded.complete_predictions(loaded.predict_step(batch, 0))
        assert predictions.lower is None and predictions.upper is None

    def test_too_few_rows_are_said_once(self, table, tmp_path, caplog):
        model = Regression(RBF, **SMALL, interval=0.95)
        trainer(tmp_path, max_epochs=3).fit(model, data(table))
        lines = [record.getMessage() for record in caplog.records if "interval" in record.getMessage()]
        assert lines == [
            "predictions have no interval: 15 validation rows are too few for interval=0.95, which takes 19; give "
            "more, or a lower interval"
        ]
        assert len(model.intervals.scores) == 15 and model.intervals.radius == math.inf

    @pytest.mark.parametrize("stage", ["test", "predict"])
    def test_who_asks_for_more_than_there_is_is_told(self, stage, sure, table, tmp_path, caplog):
        _, rows, path = sure
        model = Regression.load_from_checkpoint(path, weights_only=True, interval=0.99)
        if stage == "predict":
            rows = data(table, predict_path=table)
        getattr(trainer(tmp_path), stage)(model, rows, ckpt_path=path, weights_only=True)
        lines = [record.getMessage() for record in caplog.records if "interval" in record.getMessage()]
        rows = len(model.intervals.scores)
        assert lines == [
            f"predictions have no interval: {rows} validation rows are too few for interval=0.99, which takes 99; give "
            "more, or a lower interval"
        ]

    def test_answers_that_are_no_numbers_have_none(self, sure):
        model, _, _ = sure
        model.intervals.scores = torch.full((31,), math.nan)
        assert model.intervals.radius == math.inf and "no number" in model.intervals.why_none

    def test_they_are_in_the_pictures(self, sure, tmp_path):
        model, rows, path = sure
        trainer(tmp_path).validate(model, rows, ckpt_path=path, weights_only=True, verbose=False)
        figures = model.pictures()
        assert figures.keys() == {"results/fit"} | ({"results/calibration"} if model.has_likelihood else set())

        def labels():
            return [artist.get_label() for artist in model.pictures()["results/fit"]().axes[0].collections]

        assert "interval" in labels()
        model.intervals.scores = None
        assert "interval" not in labels()

    @pytest.mark.parametrize("name", ["out.csv", "out.tsv.gz", "out.jsonl"])
    def test_files_have_what_is_known(self, sure, name, tmp_path):
        model, rows, path = sure
        new = data(rows.path, predict_path=rows.path)
        writer = PredictionWriter(tmp_path / name)
        trainer(tmp_path, callbacks=[writer]).predict(model, new, ckpt_path=path, weights_only=True)
        assert writer.count == 151
        separator = "\t" if "tsv" in name else ","
        written = (
            pd.read_json(tmp_path / name, lines=True, precise_float=True)
            if name.endswith("jsonl")
            else pd.read_csv(tmp_path / name, sep=separator)
        )
        (batch,) = new.predict_dataloader()
        predictions = model.complete_predictions(model.predict_step(batch, 0).detach())
        known = ["", *(["_std"] if model.has_likelihood else []), "_lower", "_upper"]
        assert written.columns.tolist() == ["row", "a", "b", "y", *(f"predicted_y{suffix}" for suffix in known)]
        for suffix, values in zip(known, [values for values in predictions if values is not None], strict=True):
            assert values.dtype == torch.float64
            np.testing.assert_array_equal(written[f"predicted_y{suffix}"], values.numpy())


class TestSchedule:
    def rates(self, folder, table, **options) -> list[float]:
        model = Regression(
            DotProduct, **SMALL, scheduler=WarmupCosine, optimizer=functools.partial(torch.optim.SGD, lr=1e-3)
        )
        seen: list[float] = []

        class Watch(Callback):
            def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
                seen.append(1e3 * trainer.optimizers[0].param_groups[0]["lr"])

        trainer(folder, callbacks=[Watch()], limit_val_batches=0, **options).fit(model, data(table))
        return seen

    @pytest.mark.parametrize(
        ("options", "updates"), [({"max_steps": 20, "max_epochs": -1}, 20), ({"max_epochs": 5}, 10)]
    )
    def test_it_ends_with_the_training_however_that_is_told(self, options, updates, table, tmp_path):
        rates = self.rates(tmp_path, table, **options)
        cosine = [(1 + math.cos(math.pi * update / updates)) / 2 for update in range(1, updates + 1)]
        assert rates[1:] == pytest.approx(cosine[1:])

    def test_it_ends_with_the_time(self, table, tmp_path):
        rates = self.rates(tmp_path, table, max_epochs=-1, max_time={"seconds": 2})
        assert rates[-1] < 0.1 < 0.9 < max(rates)
        after = rates.index(max(rates))
        assert rates[after:] == sorted(rates[after:], reverse=True)

    def test_without_an_end_it_stays_at_the_beginning(self, table, tmp_path):
        stop = Callback()
        stop.on_train_batch_end = lambda trainer, *_: setattr(trainer, "should_stop", trainer.global_step == 4)
        model = Regression(DotProduct, **SMALL, scheduler=WarmupCosine)
        fit = trainer(tmp_path, callbacks=[stop], limit_val_batches=0, max_epochs=-1)
        fit.fit(model, data(table))
        assert model.progress == 0.0


class TestCheckpoint:
    def test_it_is_enough_in_python(self, trained, tmp_path):
        model, rows, path = trained
        saved = torch.load(path, weights_only=True)
        assert saved["hyper_parameters"]["attention"]["init_args"] == {"p": 1.8}
        Path(rows.path).rename(tmp_path / "new.csv")  # the training table is gone
        loaded = Regression.load_from_checkpoint(path, weights_only=True).eval()
        new = RegressionData.load_from_checkpoint(path, predict_path=str(tmp_path / "new.csv"), weights_only=True)
        new.setup("predict")
        (batch,) = new.predict_dataloader()
        assert_close(loaded.predict_step(batch, 0), model.predict_step(batch, 0), rtol=0, atol=0)

    def test_it_is_enough_for_a_trainer(self, trained, tmp_path):
        model, rows, path = trained
        new = data(rows.path, predict_path=rows.path)
        untrained = Regression(functools.partial(MIKAN, p=1.8), **SMALL)
        predicted = torch.cat(trainer(tmp_path).predict(untrained, new, ckpt_path=path, weights_only=True))
        (batch,) = new.predict_dataloader()
        assert predicted.dtype == torch.float64
        assert_close(predicted, model.predict_step(batch, 0), rtol=0, atol=0)

    def test_other_columns_are_refused(self, trained, table, tmp_path):
        _, _, path = trained
        untrained, other = Regression(functools.partial(MIKAN, p=1.8), **SMALL), data(table, drop=["b"])
        with pytest.raises(ValueError, match="trained with num_features=2, but the data has num_features=1; give"):
            trainer(tmp_path).test(untrained, other, ckpt_path=path, weights_only=True)

    def test_a_foreign_one_is_refused(self):
        with pytest.raises(ValueError, match="not one of Regression: it does not say num_features"):
            Regression().on_load_checkpoint({"state_dict": {}})


def test_predictions_do_not_depend_on_their_company(trained) -> None:
    model, rows, _ = trained
    (batch,) = rows.test_dataloader()
    together, halves = model(batch.features), torch.cat([model(half) for half in batch.features.split(8)])
    assert_close(together, halves)
    batch.features[0] += 5
    assert_close(model(batch.features)[1:], together[1:], rtol=0, atol=0)


def test_context_is_the_training_rows(trained) -> None:
    model, rows, _ = trained
    assert_close(model.context, rows.context, rtol=0, atol=0)
    assert len(model.context) == 121


def test_large_tables_have_a_fixed_choice_of_context(table, tmp_path) -> None:
    model, rows = Regression(DotProduct, **SMALL), data(table, max_context=17, batch_size=17)
    trainer(tmp_path, max_epochs=1).fit(model, rows)
    assert model.context.shape == (17, 2)
    assert model.hparams["num_context"] == 17


def test_same_seed_same_weights(table, tmp_path) -> None:
    weights = []
    for _ in range(2):
        seed_everything(7, verbose=False)
        model = Regression(MIKAN, **(SMALL | {"dropout": 0.1}))
        trainer(tmp_path, max_epochs=2).fit(model, data(table))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert_close(*weights, rtol=0, atol=0)
    assert math.isfinite(weights[0].sum())


def test_other_data_is_refused(tmp_path) -> None:
    class Pictures(LightningDataModule):
        def train_dataloader(self):
            return []

        val_dataloader = train_dataloader

    with pytest.raises(ValueError, match="Regression needs RegressionData, got Pictures; give --data RegressionData"):
        trainer(tmp_path, max_epochs=1).fit(Regression(), Pictures())


def test_loaders_alone_give_no_rows_to_answer_from() -> None:
    """A context of zeros would answer for every row, without a word."""
    model = Regression(width=8, depth=1, num_heads=2, num_features=3, num_context=5, target_mean=1.0, target_std=2.0)
    rows = RowBatch(torch.randn(7, 3), torch.randn(7), torch.arange(7))
    loader = DataLoader([rows], batch_size=None)
    trainer = Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"^the context, of which rows answer, is empty: give the trainer a Regres"):
        trainer.fit(model, loader, loader)
    with pytest.raises(ValueError, match=r"^the context, of which rows answer, is empty"):
        trainer.validate(model, loader)
    model.configure_model()
    model.context, model.context_target = torch.randn(5, 3), torch.randn(5)
    trainer.fit(model.train(), loader, loader)
    assert trainer.callback_metrics["val/loss"].isfinite()
