"""What tasks tell of classes: how heavy each is in training, and which were taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

__all__ = ["describe_confusion", "weigh_classes"]


def weigh_classes(weights: Literal["balanced"] | Sequence[float], counts: Tensor, classes: list[str]) -> Tensor:
    r"""Make the weight of each class in a training loss.

    Balanced weights have a mean of 1 over the n samples, of c classes with n_k samples each:

    .. math:: w_k = \frac{n}{c \, n_k}

    Args:
        weights: One for each class, or ``"balanced"``: the rarer in training, the heavier.
        counts: How many training samples each class has.
        classes: Names of the classes.

    Shapes:
        counts and the result (c,).

    Raises:
        ValueError: If there are not as many weights as classes.

    Example:
        >>> weigh_classes("balanced", torch.tensor([1, 3]), ["rare", "common"])
        tensor([2.0000, 0.6667])
    """
    if weights == "balanced":
        return counts.sum() / (len(counts) * counts)
    if len(weights) != len(counts):
        raise ValueError(
            f"class_weights must be one for each of the {len(counts)} classes, {classes}, got {list(weights)}"
        )
    return torch.tensor(weights)


def describe_confusion(counts: Tensor, classes: list[str]) -> str:
    r"""Write a confusion matrix as a table in Markdown; of more than 12 classes, the commonest confusions alone.

    Args:
        counts: How many texts of class i were taken for class j.
        classes: Names of the classes.

    Shapes:
        counts (c, c).

    Example:
        >>> print(describe_confusion(torch.tensor([[5, 1], [0, 7]]), ["bad", "good"]))
        | true \ predicted | bad | good |
        | --- | --- | --- |
        | bad | 5 | 1 |
        | good | 0 | 7 |
    """
    if len(classes) <= 12:
        rows = [["true \\ predicted", *classes], ["---"] * (len(classes) + 1)]
        rows += [[name, *map(str, row)] for name, row in zip(classes, counts.tolist(), strict=True)]
    else:
        wrong = counts.clone().fill_diagonal_(0)
        rows = [["true", "predicted", "texts"], ["---"] * 3]
        for place in wrong.flatten().argsort(descending=True, stable=True)[:12].tolist():
            true, predicted = divmod(place, len(classes))
            if wrong[true, predicted]:
                rows.append([classes[true], classes[predicted], str(wrong[true, predicted].item())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
