"""What a core demands of the spectrum and of the feature maps that it is given, which may be a stranger's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ika_lightning.attention.features import FeatureMap
from ika_lightning.attention.spectrum import Spectrum


def call_spectrum(spectrum: Spectrum, mean_key: Tensor | None) -> tuple[FeatureMap, Tensor]:
    """Call a spectrum, and refuse what it must not return."""
    returned: Any = spectrum(mean_key)
    name = type(spectrum).__name__
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], FeatureMap)):
        raise TypeError(f"{name} must return a FeatureMap and its regulariser, got {_kinds(returned)}")
    feature_map, kl = returned
    if not (isinstance(kl, Tensor) and kl.dim() == 0):
        raise TypeError(
            f"the regulariser of {name} must be a tensor without axes, such as torch.zeros(()), got {_kinds(kl)}"
        )
    if mean_key is not None and type(feature_map).select is FeatureMap.select:
        raise TypeError(
            f"{type(feature_map).__name__}, of the conditional {name}, must say in select(index) what the map of some "
            "of the sequences is; let it return self if all have the same"
        )
    return feature_map, kl


def call_feature_map(feature_map: FeatureMap, x: Tensor) -> Tensor:
    """Call a feature map, and refuse what it must not return."""
    features: Any = feature_map(x)
    if not isinstance(features, Tensor):
        raise TypeError(f"a feature map must return a tensor, got a {type(features).__name__}")
    if features.dim() < 2 or features.shape[-2] != x.shape[-2]:
        raise ValueError(
            f"a feature map must return (..., rows, features) with a row for each of {x.size(-2)} rows, got shape "
            f"{tuple(features.shape)} for {tuple(x.shape)}"
        )
    return features


def _kinds(x: object) -> str:
    if isinstance(x, tuple):
        return f"({', '.join(map(_kinds, x))})"
    return f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
