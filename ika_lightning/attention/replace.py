"""One call that puts attention of this package into a model made of PyTorch's."""

from __future__ import annotations

from typing import Any

from torch import nn

from ika_lightning.attention.layer import MultiheadAttention


def replace_attention(
    model: nn.Module, attention: type[MultiheadAttention], *, strict: bool = True, **options: Any
) -> nn.Module:
    """Replace every attention layer of a model, in place, keeping what the model knows.

    Each :class:`torch.nn.MultiheadAttention`, and each layer of this package, gives way to
    ``attention.from_attention(layer, **options)``, which takes over its projections, see
    :meth:`~ika_lightning.attention.MultiheadAttention.from_attention` for how near the model stays to what it was. A
    layer that is used in several places stays one layer. If one layer cannot be replaced, none is.

    Parameters are new objects: make optimizers after this call.

    Args:
        model: Any model; or an attention layer itself, which is returned replaced.
        attention: The class of the layers to put in.
        strict: Refuse a layer of which something would be lost: a subclass of :class:`torch.nn.MultiheadAttention` with
            a ``forward`` of its own, or a layer with hooks. False replaces them all the same.
        **options: Arguments of its constructor, such as p and num_samples.

    Returns:
        The model.

    Raises:
        ValueError: If the model has no attention layer, or one that cannot be replaced or, if strict, would lose
            something.

    Example:
        >>> from ika_lightning.attention import IKAN
        >>> layer = nn.TransformerEncoderLayer(d_model=8, nhead=2, batch_first=True)
        >>> encoder = replace_attention(nn.TransformerEncoder(layer, num_layers=2), IKAN, p=1.8)
        >>> type(encoder.layers[1].self_attn).__name__
        'IKAN'
    """
    found = {
        path: layer
        for path, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, nn.MultiheadAttention | MultiheadAttention)
    }
    if not found:
        raise ValueError(
            f"model must contain torch.nn.MultiheadAttention or a layer of this package, found none in {type(model)}"
        )
    if strict:
        for path, layer in found.items():
            _check_nothing_is_lost(path or "the model itself", layer)
    new = {layer: attention.from_attention(layer, **options) for layer in set(found.values())}
    if model in new:
        return new[model]
    for path, layer in found.items():
        model.set_submodule(path, new[layer])
    return model


def _check_nothing_is_lost(path: str, layer: nn.Module) -> None:
    plain = nn.MultiheadAttention if isinstance(layer, nn.MultiheadAttention) else MultiheadAttention
    lost = None
    if type(layer).forward is not plain.forward:
        lost = f"it is a {type(layer).__name__} with a forward of its own"
    elif layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        lost = "it has hooks, as parametrizations such as weight norm and some wrappers register them"
    if lost is not None:
        raise ValueError(f"{path} would lose something: {lost}; strict=False replaces it all the same")
