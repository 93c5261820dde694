"""Backbones made of attention: what the tasks share."""

from ika_lightning.models.compiled import compile_layers
from ika_lightning.models.draws import SpectralDraws
from ika_lightning.models.encoder import AttentionFactory, Encoder, EncoderLayer
from ika_lightning.models.encoder_decoder import DecoderLayer, EncoderDecoder
from ika_lightning.models.ensemble import Ensemble
from ika_lightning.models.graph import ConvFactory, GraphNetwork
from ika_lightning.models.numbers import PeriodicEmbedding
from ika_lightning.models.rows import RowTransformer
from ika_lightning.models.text import TextClassifier

__all__ = [
    "AttentionFactory",
    "ConvFactory",
    "DecoderLayer",
    "Encoder",
    "EncoderDecoder",
    "EncoderLayer",
    "Ensemble",
    "GraphNetwork",
    "PeriodicEmbedding",
    "RowTransformer",
    "SpectralDraws",
    "TextClassifier",
    "compile_layers",
]
