"""Backbones made of attention: what the tasks share."""

from ika_lightning.models.encoder import AttentionFactory, Encoder, EncoderLayer
from ika_lightning.models.graph import ConvFactory, GraphNetwork
from ika_lightning.models.rows import RowTransformer

__all__ = ["AttentionFactory", "ConvFactory", "Encoder", "EncoderLayer", "GraphNetwork", "RowTransformer"]
