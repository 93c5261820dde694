import functools

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from ika_lightning.attention import MIKAN, RBF, ExplicitKernel, MaternKernel
from ika_lightning.tasks import Regression
from ika_lightning.tasks.layers import find_layer, name_layer


class TestNames:
    @pytest.mark.parametrize(
        "factory",
        [
            MIKAN,
            functools.partial(RBF, p=1.5),
            functools.partial(ExplicitKernel, kernel=functools.partial(MaternKernel, nu=2.5), p=3.0),
        ],
    )
    def test_round_trip_through_a_safe_file(self, factory, tmp_path):
        torch.save(name_layer(factory), tmp_path / "name.pt")
        found = find_layer(torch.load(tmp_path / "name.pt", weights_only=True))(8, 2)
        assert repr(found) == repr(factory(8, 2))
        assert type(found) is type(factory(8, 2))

    @pytest.mark.parametrize("factory", [lambda width, heads: RBF(width, heads), functools.partial(RBF, 8), "RBF"])
    def test_what_no_checkpoint_could_name(self, factory):
        with pytest.raises(ValueError, match=r"an attention must be a class, or a functools.partial of one"):
            name_layer(factory)

    @pytest.mark.parametrize("path", ["os.system", "ika_lightning.attention.IKANN", "not_imported.Layer", "RBF"])
    def test_a_checkpoint_cannot_name_anything_else(self, path):
        with pytest.raises(ValueError, match=f"{path} is no layer that is imported"):
            find_layer({"class_path": path})


class TestOptimizer:
    def test_alone(self):
        task = Regression(optimizer=functools.partial(torch.optim.SGD, lr=0.3), scheduler=None)
        task.net = torch.nn.Linear(2, 1)
        optimizer = task.configure_optimizers()
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.param_groups[0]["lr"] == 0.3

    def test_with_a_scheduler(self):
        task = Regression(scheduler=functools.partial(StepLR, step_size=7))
        task.net = torch.nn.Linear(2, 1)
        scheduler = task.configure_optimizers()["lr_scheduler"]
        assert scheduler["scheduler"].step_size == 7

    def test_a_plateau_is_one_of_the_validation_loss(self):
        task = Regression(scheduler=ReduceLROnPlateau)
        task.net = torch.nn.Linear(2, 1)
        assert task.configure_optimizers()["lr_scheduler"]["monitor"] == "val/loss"


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="kl_weight must be at least 0, got -1"):
        Regression(kl_weight=-1)
