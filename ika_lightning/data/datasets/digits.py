"""Scikit-learn's handwritten digits, each joined to those most like it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ika_lightning.data.datasets.kinds import GraphSet
from ika_lightning.lazy import sklearn_datasets
from ika_lightning.lazy import torch_geometric as pyg


def read_digits(files: Mapping[str, Path], neighbours: int = 10) -> pyg.data.Data:
    """Scikit-learn's handwritten digits, each joined to those most like it.

    The distance of two digits is that of their 64 pixels. They are whole numbers, so neighbours are the same on
    every computer; of equally near ones, the first count. A digit is joined to another if either is a neighbour of the
    other.

    Args:
        files: None, as scikit-learn has them.
        neighbours: Number of neighbours of a digit.

    Returns:
        1,797 nodes with features in [0, 1] and labels 0 to 9.
    """
    pixels, label = sklearn_datasets.load_digits(return_X_y=True)
    squares = np.square(pixels).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :neighbours]
    edges = np.stack([nearest.ravel(), np.repeat(np.arange(len(pixels)), neighbours)])
    return pyg.data.Data(
        x=torch.from_numpy(pixels / 16).float(),
        edge_index=pyg.utils.to_undirected(torch.from_numpy(edges), num_nodes=len(pixels)),
        y=torch.from_numpy(label),
    )


DATASET = GraphSet(
    name="digits",
    title="handwritten digits, each joined to those most like it",
    licence="ships with scikit-learn",
    read=read_digits,
    train_per_class=5,
    num_val=300,
    num_test=1447,
)
