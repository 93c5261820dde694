"""What a training prints of its model before it starts: the parts of the network, and how many numbers each learns."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary import summarize
from torchmetrics import Metric
from typing_extensions import override

__all__ = ["NetworkSummary", "table_of"]


class NetworkSummary(ModelSummary):
    """Lightning's summary of a model, without its metrics, which learn nothing, and columns that say nothing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[NetworkSummary()], logger=False, enable_checkpointing=False)
    """

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            print(table_of(pl_module))


def table_of(model: LightningModule) -> str:
    """A line for each part of a model that has parameters, and one for all of them.

    A part is what the model consists of, or what its only such child does: of a task, the parts of its network.

    Args:
        model: The model.

    Example:
        >>> import torch
        >>> class Model(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(9, 99), torch.nn.ReLU(), torch.nn.Linear(99, 2))
        >>> print(table_of(Model()))
        part   kind    parameters
        net.0  Linear         990
        net.2  Linear         200
        all                 1,190
    """
    summary = summarize(model, max_depth=2)
    counts = dict(zip(summary.layer_names, summary.param_nums, strict=True))
    kinds = dict(zip(summary.layer_names, summary.layer_types, strict=True))
    learning = [name for name, part in model.named_children() if counts[name] and not isinstance(part, Metric)]
    below = [name for name in counts if counts[name] and name.rpartition(".")[0] in learning]
    parts = below if len(learning) == 1 and sum(map(counts.__getitem__, below)) == counts[learning[0]] else learning
    rows = [("part", "kind", "parameters"), *((name, kinds[name], f"{counts[name]:,}") for name in parts)]
    fixed = summary.total_parameters - summary.trainable_parameters
    rows.append(("all", f"{fixed:,} of them fixed" if fixed else "", f"{summary.total_parameters:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{name:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}" for name, kind, count in rows)
