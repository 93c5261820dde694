"""Projections that :class:`torch.nn.MultiheadAttention` packs into one weight, and our layers do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# weight and bias
Projection = tuple[Tensor, Tensor | None]


class NoPackedProjection:
    """What PyTorch's transformer layers find where :class:`torch.nn.MultiheadAttention` has packed weights.

    In evaluation they hand such weights to a fused softmax layer and never call ``forward``, and
    :class:`torch.nn.TransformerEncoder` makes nested tensors for it. Before either they ask whether an argument
    overrides torch functions, as this one does, and if so leave both alone, whether the layer was there when the
    encoder was built or was put in later. Were the question ever dropped, the fused layer would refuse this with a
    TypeError; it cannot run softmax in silence. ``in_proj_bias = None`` would keep the layers from it, too, but not an
    encoder that was built before, and would make one built after warn.
    """

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take part in no torch function."""
        return NotImplemented


def unpack(layer: nn.MultiheadAttention) -> list[Projection]:
    """Return the projections of query, key, value and output of a layer of PyTorch's.

    Raises:
        ValueError: If it adds keys of its own, of which there are none here.

    Example:
        >>> [tuple(weight.shape) for weight, _ in unpack(nn.MultiheadAttention(6, 2, kdim=5))]
        [(6, 6), (6, 5), (6, 6), (6, 6)]
    """
    for name, present in (("add_bias_kv", layer.bias_k is not None), ("add_zero_attn", layer.add_zero_attn)):
        if present:
            raise ValueError(f"layer must not have {name}: there is no such extra key here, got a layer with it")
    with torch.enable_grad():  # so that a part of a weight says whether the weight is frozen
        if layer.in_proj_weight is None:
            weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
        else:
            weights = layer.in_proj_weight.chunk(3)
        biases = (None,) * 3 if layer.in_proj_bias is None else layer.in_proj_bias.chunk(3)
    return [*zip(weights, biases, strict=True), (layer.out_proj.weight, layer.out_proj.bias)]
