"""Zachary's karate club as PyG has it."""

from ika_lightning.data.datasets.kinds import GraphSet
from ika_lightning.lazy import torch_geometric as pyg

DATASET = GraphSet(
    name="karate",
    title="Zachary's karate club: 34 members, 4 communities, a member known of each",
    licence="ships with PyG",
    read=lambda files: pyg.datasets.KarateClub()[0],
    train_per_class=1,
    num_val=10,
    num_test=20,
    draws=True,
)
