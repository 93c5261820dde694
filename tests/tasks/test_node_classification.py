"""Node classification: learning, figures, checkpoints."""

import functools
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from sklearn.metrics import f1_score
from torch.testing import assert_close
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.utils import to_undirected

from ika_lightning.attention import KernelGATConv, KernelTransformerConv, attention_kl
from ika_lightning.data import NodeClassificationData
from ika_lightning.tasks import NodeClassification

CONVS = [KernelGATConv, functools.partial(KernelTransformerConv, num_samples=7), GATConv, GCNConv]
SMALL = {"width": 4, "num_heads": 2, "dropout": 0.0}
NODES = 151


@pytest.fixture
def graph(tmp_path: Path) -> str:
    """Three communities; a feature says a little of which."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(NODES) % 3
    ends = torch.randint(NODES, (2, 4000), generator=generator)
    same = y[ends[0]] == y[ends[1]]
    edge_index = to_undirected(ends[:, same | (torch.rand(4000, generator=generator) < 0.05)])
    x = torch.randn(NODES, 5, generator=generator)
    x[:, 0] += y.float()
    order = torch.randperm(NODES, generator=generator)
    masks = {part: torch.zeros(NODES, dtype=torch.bool) for part in ("train", "val", "test")}
    for part, chosen in zip(masks, order.split([80, 30, 41]), strict=True):
        masks[part][chosen] = True
    torch.save(Data(x=x, edge_index=edge_index, y=y, **{f"{k}_mask": v for k, v in masks.items()}), tmp_path / "g.pt")
    return str(tmp_path / "g.pt")


def trainer(folder: Path, **options) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        log_every_n_steps=1, **options,
    )  # fmt: skip


@pytest.fixture
def trained(graph, tmp_path) -> tuple[NodeClassification, NodeClassificationData, Path]:
    seed_everything(0, verbose=False)
    model = NodeClassification(functools.partial(KernelGATConv, spectrum="copula", num_samples=7), **SMALL)
    data = NodeClassificationData(path=graph)
    fit = trainer(tmp_path, max_epochs=2)
    fit.fit(model, data)
    fit.save_checkpoint(tmp_path / "model.ckpt")
    return model.eval(), data, tmp_path / "model.ckpt"


@pytest.mark.parametrize("options", [{}, {"batch_size": 16}, {"inductive": True}], ids=str)
@pytest.mark.parametrize("conv", CONVS)
def test_it_learns(conv, options, graph, tmp_path):
    seed_everything(0, verbose=False)
    optimizer = functools.partial(torch.optim.Adam, lr=1e-2)
    model, data = NodeClassification(conv, **SMALL, optimizer=optimizer), NodeClassificationData(path=graph, **options)
    fit = trainer(tmp_path, max_epochs=80, check_val_every_n_epoch=80)
    fit.fit(model, data)
    assert {"val/loss", "val/accuracy", "val/f1", "train/loss", "train/kl"} == set(fit.callback_metrics)
    (measured,) = fit.test(model, data, verbose=False)
    assert measured["test/accuracy"] > 0.7


def test_figures(trained, tmp_path):
    model, data, _ = trained
    (measured,) = trainer(tmp_path).test(model, data, verbose=False)
    (batch,) = data.test_dataloader()
    scores, label = model(batch).detach(), batch.y[batch.asked]
    assert len(label) == 41
    assert measured["test/accuracy"] == pytest.approx((scores.argmax(1) == label).double().mean())
    assert measured["test/f1"] == pytest.approx(f1_score(label, scores.argmax(1), average="macro"))
    assert measured["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(scores, label).item(), rel=1e-5)


def test_training_loss_is_cross_entropy_and_kl(trained):
    model, data, _ = trained
    model.train()
    model.kl_weight = 3.0
    model.log = lambda *args, **kwargs: None
    (batch,) = data.train_dataloader()
    torch.manual_seed(1)
    loss = model.training_step(batch, 0)
    torch.manual_seed(1)
    scores = model.net(batch.x, batch.edge_index)[batch.asked]
    kl = attention_kl(model)
    assert kl > 0
    assert_close(loss, torch.nn.functional.cross_entropy(scores, batch.y[batch.asked]) + 3.0 * kl)


class TestCheckpoint:
    def test_it_is_enough_in_python(self, trained, tmp_path):
        model, data, path = trained
        assert torch.load(path, weights_only=True)["hyper_parameters"]["conv"]["init_args"]["spectrum"] == "copula"
        Path(data.path).rename(tmp_path / "new.pt")
        loaded = NodeClassification.load_from_checkpoint(path, weights_only=True).eval()
        new = NodeClassificationData.load_from_checkpoint(
            path, predict_path=str(tmp_path / "new.pt"), weights_only=True
        )
        new.setup("predict")
        (batch,) = new.predict_dataloader()
        predicted = loaded.predict_step(batch, 0)
        assert predicted.shape == (NODES, 3)
        assert_close(predicted.sum(1), torch.ones(NODES))
        assert_close(predicted, model.predict_step(batch, 0), rtol=0, atol=0)
        new.write_predictions(tmp_path / "out.csv", predicted)
        assert len(pd.read_csv(tmp_path / "out.csv")) == NODES

    def test_it_is_enough_for_a_trainer(self, trained, tmp_path):
        model, data, path = trained
        untrained = NodeClassification(functools.partial(KernelGATConv, spectrum="copula", num_samples=7), **SMALL)
        new = NodeClassificationData(path=data.path)
        (expected,) = trainer(tmp_path).test(model, data, verbose=False)
        (measured,) = trainer(tmp_path).test(untrained, new, ckpt_path=path, weights_only=True, verbose=False)
        assert measured == expected
        predicted = torch.cat(trainer(tmp_path).predict(untrained, new, ckpt_path=path, weights_only=True))
        assert predicted.shape == (NODES, 3)

    def test_a_foreign_one_is_refused(self):
        with pytest.raises(ValueError, match="not one of NodeClassification: it does not say num_features"):
            NodeClassification().on_load_checkpoint({"state_dict": {}})


def test_an_isolated_node_changes_no_other_prediction(trained):
    """The spectrum is told the mean of the nodes; this one is not among them."""
    model, data, _ = trained
    (batch,) = data.test_dataloader()
    more = batch._replace(x=torch.cat([batch.x, 50 + batch.x[:1]]))
    assert_close(model(more), model(batch), rtol=0, atol=1e-6)


def test_same_seed_same_weights(graph, tmp_path):
    weights = []
    for _ in range(2):
        seed_everything(7, verbose=False)
        model = NodeClassification(functools.partial(KernelGATConv, spectrum="implicit"), **(SMALL | {"dropout": 0.3}))
        trainer(tmp_path, max_epochs=2).fit(model, NodeClassificationData(path=graph, batch_size=8))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert_close(*weights, rtol=0, atol=0)


def test_other_data_is_refused(tmp_path):
    class Pictures(LightningDataModule):
        def train_dataloader(self):
            return []

        val_dataloader = train_dataloader

    with pytest.raises(ValueError, match="NodeClassification needs NodeClassificationData, got Pictures"):
        trainer(tmp_path, max_epochs=1).fit(NodeClassification(), Pictures())
