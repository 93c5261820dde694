import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.testing import assert_close

from ika_lightning.callbacks import AveragedWeights

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with")


class Counting(LightningModule):
    """A weight that is 1, 2, 3, ... after the updates, and how often it was updated."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.register_buffer("updates", torch.tensor(0))
        self.seen: list[float] = []

    def training_step(self, batch, batch_idx):
        self.updates += 1
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.weight[0].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def expected(updates: int, decay: float) -> list[float]:
    """The average after each update, the first of which is copied."""
    averages = [1.0]
    for t in range(2, updates + 1):
        averages.append(averages[-1] + max(1.0 - decay, 9.0 / (9.0 + t)) * (t - averages[-1]))
    return averages


@pytest.mark.parametrize(("decay", "updates"), [(0.9, 131), (0.99, 47), (0.0, 5)])
def test_the_memory_grows_with_the_training(decay, updates, tmp_path) -> None:
    model = Counting()
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=updates,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[AveragedWeights(decay)],
        val_check_interval=1, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(range(updates))
    trainer.fit(model, loader, torch.utils.data.DataLoader(range(1)))
    averages = expected(updates, decay)
    # a validation in the middle of an epoch comes after the update is averaged
    assert_close(model.seen, averages)
    assert_close(model.weight.detach(), torch.full((3,), averages[-1]).double())
    # what is no number that can be averaged is that of the last update
    assert model.updates == updates


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_wrong(decay) -> None:
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got"):
        AveragedWeights(decay)
