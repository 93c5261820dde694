"""What attention layers saw and did in one pass through a model: the raw material of every picture.

A :class:`Recorder` watches the layers of this package from the outside, by hooks. It runs nothing a second time and
changes nothing: the model computes what it computes without it. What it keeps are copies of a few sequences, so
pictures may be made later, when the weights have moved on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ika_lightning.attention.core import Core, DotProductCore, Regularised, at_least_float32
from ika_lightning.attention.kernels import Kernel

# Most edges of a graph whose keys are kept.
_MAX_EDGES = 16_384


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One attention layer, as it was in one pass.

    Args:
        name: Where in the model the layer is.
        num_heads: Number of heads, h.
        width: Width of a query and a key of a head, d.
        p: Exponent of the norm in the magnitude.
        frequencies: The one or two sets of frequencies of a learned kernel, (h, M, d), or (b, h, M, d) where each
            sequence or graph has its own; none for a kernel given by a formula.
        kernel: The kernel given by a formula, if there is one.
        learned: Whether the similarity is anything but dot-product attention's.
        copula: The factor C of the correlation between heads, (h, h) or (b, h, h); None where heads are not coupled.
    """

    name: str
    num_heads: int
    width: int
    p: float
    frequencies: tuple[Tensor, ...] = ()
    kernel: Kernel | None = None
    learned: bool = True
    copula: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SequenceRecording(Recording):
    """Attention over sequences, of which the first few are kept: b sequences, n queries, m keys.

    Args:
        query: Queries, split into heads, (b, h, n, d).
        key: Keys, (b, h, m, d).
        masks: ``key_mask``, ``key_bias``, ``attn_mask`` and ``is_causal``, as a core was given them.
    """

    query: Tensor
    key: Tensor
    masks: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GraphRecording(Recording):
    """Attention over the E edges of a graph.

    Args:
        node: The node at which each edge attends, (E,).
        neighbour: The node that it attends to, (E,).
        weights: The weights of the edges, (E, h).
        keys: Keys of some of the edges, (h, E', d); None where edges have features of their own.
    """

    node: Tensor
    neighbour: Tensor
    weights: Tensor
    keys: Tensor | None


class Recorder:
    """Records the attention layers of a model while it is entered; of each, the first call. It may be entered again.

    Args:
        model: Any module with layers of this package, or with their cores, inside.
        max_sequences: Most sequences of a batch to keep.
        max_queries: Most queries of a sequence to keep, the first ones. Keys are kept whole: weights are normalised
            over them.

    Attributes:
        recordings: What was recorded since it was entered last, by the layers' names, in the order of their calls.

    Example:
        >>> from ika_lightning.attention import MIKAN
        >>> layer, x = MIKAN(embed_dim=8, num_heads=2).eval(), torch.randn(3, 5, 8)
        >>> with Recorder(layer) as recorder:
        ...     out, _ = layer(x, x, x, need_weights=False)
        >>> (recording,) = recorder.recordings.values()
        >>> recording.query.shape, recording.copula.shape
        (torch.Size([3, 2, 5, 4]), torch.Size([3, 2, 2]))
    """

    def __init__(self, model: nn.Module, max_sequences: int = 8, max_queries: int = 128) -> None:
        self.recordings: dict[str, Recording] = {}
        self.max_sequences, self.max_queries = max_sequences, max_queries
        self._layers = attention_layers(model)
        self._drawn: dict[nn.Module, Any] = {}  # what each spectrum and copula returned last
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Recorder:
        self.recordings = {}
        for name, layer in self._layers.items():
            self._handles += [part.register_forward_hook(self._keep) for part in _spectral_parts(layer)]
            if isinstance(layer, Core):
                handle = layer.register_forward_hook(self._record_sequences(name), with_kwargs=True)
            else:
                handle = layer.register_edge_update_forward_hook(self._record_edges(name))  # type: ignore[operator]
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._drawn = [], {}

    def _keep(self, part: nn.Module, _: Any, drawn: Any) -> None:
        self._drawn[part] = drawn

    def _record_sequences(self, name: str) -> Callable[..., None]:
        kept, asked = slice(self.max_sequences), slice(self.max_queries)

        def record(core: nn.Module, args: Any, kwargs: dict[str, Any], _: Any) -> None:
            if name in self.recordings:
                return
            query, key = (_copy(x[kept]) for x in args[:2])
            masks: dict[str, Any] = {"is_causal": kwargs.get("is_causal", False)}
            for argument, axes in (("key_mask", 3), ("key_bias", 3), ("attn_mask", 4)):
                mask = kwargs.get(argument)
                if mask is not None:
                    mask = mask[kept] if mask.dim() == axes and mask.size(0) > 1 else mask
                    masks[argument] = (mask[..., asked, :] if argument == "attn_mask" else mask).detach().clone()
            self.recordings[name] = SequenceRecording(
                **_describe(name, core, self._drawn, self.max_sequences),
                num_heads=key.size(1),
                width=key.size(-1),
                query=query[:, :, asked],
                key=key,
                masks=masks,
            )

        return record

    def _record_edges(self, name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: Any, weights: Tensor) -> None:
            if name in self.recordings:
                return
            _, _, given = inputs
            described = _describe(name, layer, self._drawn, self.max_sequences)
            width = described["frequencies"][0].size(-1)
            i, j, keys = given["edge_index_i"].clone(), given["edge_index_j"].clone(), None
            if given["edge_attr"] is None:
                some = slice(None, None, max(1, -(-len(i) // _MAX_EDGES)))
                keys = given["keys"].detach()[j[some]]
                if width == 2 * keys.size(-1):  # a key is both ends of its edge
                    keys = torch.cat([given["queries"].detach()[i[some]], keys], -1)
                keys = at_least_float32(keys).transpose(0, 1)
            self.recordings[name] = GraphRecording(
                **described,
                num_heads=weights.size(1),
                width=width,
                node=i,
                neighbour=j,
                weights=_copy(weights),
                keys=keys,
            )

        return record


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find what attends in a model: cores of attention over sequences, and convolutions over graphs.

    Returns:
        Them by name; a core has the name of the layer that it is in.

    Example:
        >>> from ika_lightning.attention import IKAN, DotProduct
        >>> model = nn.ModuleDict({"first": IKAN(8, 2), "second": DotProduct(8, 2), "head": nn.Linear(8, 1)})
        >>> [(name, type(layer).__name__) for name, layer in attention_layers(model).items()]
        [('first', 'SpectralCore'), ('second', 'DotProductCore')]
    """
    return {
        name.removesuffix("core").removesuffix("."): module
        for name, module in model.named_modules()
        if isinstance(module, Core | Regularised)
    }


def record_spectra(model: nn.Module) -> dict[str, Recording]:
    """Record what a model in evaluation knows of its kernels before it has seen anything.

    A density that depends on the keys is then that of a mean key of zero, which causal attention always has.

    Returns:
        Recordings of the layers with a learned kernel, by name.

    Example:
        >>> from ika_lightning.attention import IKANDirect
        >>> recordings = record_spectra(nn.ModuleDict({"first": IKANDirect(8, 2, num_samples=5)}))
        >>> [tuple(w.shape) for w in recordings["first"].frequencies]
        [(2, 5, 4), (2, 5, 4)]
    """
    recordings = {}
    with torch.no_grad():
        for name, layer in attention_layers(model).items():
            if parts := _spectral_parts(layer):
                described = _describe(name, layer, {part: part(None) for part in parts}, 1)
                num_heads, _, width = described["frequencies"][0].shape
                recordings[name] = Recording(**described, num_heads=num_heads, width=width)
    return recordings


def _spectral_parts(layer: nn.Module) -> list[nn.Module]:
    """The spectrum of a layer and its copula, as far as it has them."""
    spectrum = getattr(layer, "spectrum", None)
    return [part for part in (spectrum, getattr(spectrum, "copula", None)) if part is not None]


def _describe(name: str, layer: nn.Module, drawn: dict[nn.Module, Any], most: int) -> dict[str, Any]:
    """Copy what makes the similarity and the magnitude of a layer, for the first ``most`` sequences."""
    described: dict[str, Any] = {"name": name, "p": float(getattr(layer, "p", 2.0))}
    if parts := _spectral_parts(layer):
        frequencies, _ = drawn[parts[0]]
        described["frequencies"] = tuple(_copy(w[:most] if w.dim() == 4 else w) for w in frequencies)
        for copula in parts[1:]:
            factor = drawn[copula]
            described["copula"] = _copy(factor[:most] if factor.dim() == 3 else factor)
    elif isinstance(layer, DotProductCore):
        described["learned"] = False
    else:
        described["kernel"] = copy.deepcopy(layer.kernel)
    return described


def _copy(x: Tensor) -> Tensor:
    return at_least_float32(x.detach()).clone()
