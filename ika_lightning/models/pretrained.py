"""A network that reads a text by a pretrained encoder, whose attention is one of this package, and tells its class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ika_lightning.attention.huggingface import attach_kernel_attention
from ika_lightning.attention.parameters import kernel_parameters
from ika_lightning.hub import ENCODERS, build_encoder
from ika_lightning.models.base import Network
from ika_lightning.models.encoder import AttentionFactory

__all__ = ["Layers", "PretrainedClassifier"]


class Layers(NamedTuple):
    """The parameters of an encoder from its bottom to its top, without those of kernels.

    Args:
        embeddings: Those before the layers.
        layers: Those of each layer.
        top: Those after the layers, and of the classifier.
    """

    embeddings: list[nn.Parameter]
    layers: list[list[nn.Parameter]]
    top: list[nn.Parameter]


class PretrainedClassifier(Network):
    r"""An encoder of ``transformers`` with another attention, the mean over the tokens, and a linear classifier.

    .. math:: \text{logits} = V \, \text{mean}_t \, \text{encoder}(x_1, \dots, x_n)_t + b

    The mean is over all tokens of a text, special ones included, and over no padding (as in `Sentence-BERT
    <https://arxiv.org/abs/1908.10084>`_). Everything of the encoder stays but what happens between queries, keys and
    values; see :func:`~ika_lightning.attention.huggingface.attach_kernel_attention`. A layer that starts as dot-product
    attention, as all of this package do by default, leaves what a pretrained encoder answers as it is, to rounding;
    :class:`~ika_lightning.attention.DotProduct` is the encoder's own attention.

    Args:
        config: The encoder's configuration as JSON, see :func:`ika_lightning.hub.read_config`.
        num_classes: Number of classes.
        attention: The attention layer whose core is put in, called with (width of all heads, number of heads).
        frozen_layers: How many layers, from the bottom, stay as they are; with the first, the embeddings do.

    Raises:
        ValueError: If frozen_layers is no number of layers that there are, or the layer is none of this package.

    Example:
        >>> from transformers import BertConfig
        >>> from ika_lightning.attention import IKAN
        >>> sizes = dict(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        >>> net = PretrainedClassifier(BertConfig(**sizes).to_json_string(use_diff=False), 3, IKAN)
        >>> net(torch.tensor([[4, 7, 2, 9], [5, 1, 0, 0]])).shape
        torch.Size([2, 3])
    """

    def __init__(self, config: str, num_classes: int, attention: AttentionFactory, frozen_layers: int = 0) -> None:
        super().__init__()
        settings = json.loads(config)
        self.padding: int = settings["pad_token_id"]
        self.path = ENCODERS[settings["model_type"]].layers
        self.encoder = build_encoder(config)
        attach_kernel_attention(self.encoder, attention, inputs={"input_ids": torch.full((1, 2), self.padding + 1)})
        self.head = nn.Linear(self.encoder.config.hidden_size, num_classes)
        depth = len(self.layers)
        if not 0 <= frozen_layers <= depth:
            raise ValueError(f"frozen_layers must be 0 to {depth}, as many layers as there are, got {frozen_layers}")
        for layer in self.layers[:frozen_layers]:
            layer.requires_grad_(False)
        for parameter in self.split().embeddings if frozen_layers else ():
            parameter.requires_grad_(False)

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's layers, from the bottom to the top."""
        layers = self.encoder.get_submodule(self.path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def compile(self, *args: Any, **options: Any) -> None:
        """Compile layer by layer: layers share what is compiled."""
        for layer in self.layers:
            layer.compile(*args, **options)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits of the classes.

        Args:
            tokens: Texts, padded at their ends with the encoder's token for it; each has at least one other.

        Shapes:
            tokens (b, n); the result (b, num_classes).
        """
        real = tokens != self.padding
        hidden = self.encoder(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        weights = (real / real.sum(1, keepdim=True)).to(hidden.dtype).unsqueeze(-1)
        logits: Tensor = self.head((weights * hidden).sum(1))
        return logits

    def load_encoder(self, weights: Mapping[str, Tensor]) -> None:
        """Give the encoder its weights; its attention has its own.

        Args:
            weights: What :func:`ika_lightning.hub.read_weights` returned.
        """
        own = {name: x for name, x in self.encoder.state_dict().items() if ".kernel_core." in name}
        self.encoder.load_state_dict({**own, **weights})

    def split(self) -> Layers:
        """Return the parameters that are not of kernels, from the bottom to the top."""
        kernels = {id(x) for x in kernel_parameters(self)}
        layers = [[x for x in layer.parameters() if id(x) not in kernels] for layer in self.layers]
        parameters = [x for x in self.encoder.parameters() if id(x) not in kernels]
        # in one piece, as parameters come in the order of their modules
        begin = next(place for place, x in enumerate(parameters) if x is layers[0][0])
        end = begin + sum(map(len, layers))
        return Layers(parameters[:begin], layers, [*parameters[end:], *self.head.parameters()])
