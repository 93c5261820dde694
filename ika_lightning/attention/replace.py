"""One call that puts attention of this package into a model made of PyTorch's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from ika_lightning.attention.layer import MultiheadAttention
from ika_lightning.attention.start import Linear

# What projections are in layers as they were made; all else computes something besides.
_PROJECTIONS = (nn.Linear, NonDynamicallyQuantizableLinear, Linear)


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
            a ``forward`` of its own; a layer that has hooks or parametrizations, itself or in a part; projections that
            are wrapped, as adapters wrap them; weights that another part of the model has as well. False replaces them
            all the same.
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
        shared = _shared_parameters(model)
        for path, layer in found.items():
            _check_nothing_is_lost(path or "the model itself", layer, shared)
    new = {layer: attention.from_attention(layer, **options) for layer in set(found.values())}
    if model in new:
        return new[model]
    for path, layer in found.items():
        model.set_submodule(path, new[layer])
    return model


def _shared_parameters(model: nn.Module) -> set[int]:
    """The identities of parameters that several modules have, or one under several names."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    return {identity for identity, count in owners.items() if count > 1 and identity != id(None)}


def _check_nothing_is_lost(path: str, layer: nn.Module, shared: set[int]) -> None:
    if (lost := next(_losses(layer, shared), None)) is not None:
        raise ValueError(f"{path} would lose something: {lost}; strict=False replaces it all the same")


def _losses(layer: nn.Module, shared: set[int]) -> Iterator[str]:
    """What of a layer would be lost, in words."""
    plain = nn.MultiheadAttention if isinstance(layer, nn.MultiheadAttention) else MultiheadAttention
    if type(layer).forward is not plain.forward:
        yield f"it is a {type(layer).__name__} with a forward of its own"
    for name, part in layer.named_modules():
        it = f"its {name}" if name else "it"
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            yield f"{it} has hooks, as pruning, the old weight norm and some wrappers register them"
        if is_parametrized(part):
            yield f"{it} has parametrizations, of {', '.join(sorted(part.parametrizations))}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        part = getattr(layer, name, None)
        if part is not None and type(part) not in _PROJECTIONS:
            yield f"its {name} is a {type(part).__name__}, and not the linear layer that it was made with"
    for name, parameter in layer.named_parameters():
        if id(parameter) in shared:
            yield f"its {name} is shared with another part of the model, and would be apart"
