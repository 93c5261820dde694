"""What attention layers saw and did in one pass through a model: the raw material of every picture.

A :class:`Recorder` watches the layers of this package from the outside, by hooks. It runs nothing a second time and
changes nothing: the model computes what it computes without it. What it keeps are copies of a few sequences, so
pictures may be made later, when the weights have moved on.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ika_lightning.attention.core import Core, at_least_float32
from ika_lightning.attention.features import FeatureMap, Fourier
from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.mask import Mask

log = logging.getLogger(__name__)

# Most edges of a graph whose keys are kept.
_MAX_EDGES = 16_384


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One attention layer, as it was in one pass.

    Args:
        name: Where in the model the layer is.
        core: A copy of what makes its similarity and magnitude.
        feature_map: What its spectrum returned; None if it has none.
        copula: The factor C of the correlation between heads, (h, h) or (b, h, h); None where heads are not coupled.

    Example:
        >>> from ika_lightning.attention import MIKAN
        >>> (recording,) = record_spectra(MIKAN(8, 2)).values()
        >>> recording.num_heads, recording.width, recording.copula.shape
        (2, 4, torch.Size([2, 2]))
    """

    name: str
    core: Core
    feature_map: FeatureMap | None = None
    copula: Tensor | None = None

    @property
    def num_heads(self) -> int:
        """Number of heads, h."""
        return self.core.num_heads

    @property
    def width(self) -> int:
        """Width of a query and a key of a head, d."""
        return self.core.head_dim

    @property
    def frequencies(self) -> tuple[Tensor, ...]:
        """The one or two sets of frequencies, (h, M, d), or (b, h, M, d) where each sequence or graph has its own."""
        return self.feature_map.frequencies if isinstance(self.feature_map, Fourier) else ()

    @property
    def learned(self) -> bool:
        """Whether the similarity is anything but dot-product attention's."""
        return self.core.kernel is not None or self.core.spectrum is not None


@dataclass(frozen=True, kw_only=True)
class SequenceRecording(Recording):
    """Attention over sequences, of which the first few are kept: b sequences, n queries, m keys.

    Args:
        query: Queries, split into heads, (b, h, n, d).
        key: Keys, (b, h, m, d).
        mask: What may attend to what.
        sequences: How many sequences the batch had.
        queries: How many queries each of them had.
    """

    query: Tensor
    key: Tensor
    mask: Mask
    sequences: int
    queries: int


@dataclass(frozen=True, kw_only=True)
class GraphRecording(Recording):
    """Attention over the E edges of a graph.

    Args:
        node: The node at which each edge attends, (E,).
        neighbour: The node that it attends to, (E,).
        weights: The weights of the edges, (E, h).
        keys: Keys of some of the edges, (h, E', d); None where edges have features of their own.
        nodes: How many nodes the graph has.
    """

    node: Tensor
    neighbour: Tensor
    weights: Tensor
    keys: Tensor | None
    nodes: int


class Recorder:
    """Records the attention layers of a model while it is entered; of each, the first call. It may be entered again.

    What is compiled is called without the compiler for as long, as it would call no hooks.

    No model stops for being watched: a layer of which no copy can be made, such as one around a core of somebody
    else's, is left out, with a line in the log.

    Args:
        model: Any module with layers of this package, or with their cores, inside.
        max_sequences: Most sequences of a batch to keep.
        max_queries: Most queries of a sequence to keep, the first ones. Keys are kept whole: weights are normalised
            over them.

    Attributes:
        recordings: What was recorded since it was entered last, by the layers' names, in the order of their calls.

    Example:
        >>> from ika_lightning.attention import MIKAN
        >>> layer, x = MIKAN(embed_dim=8, num_heads=2, batch_first=True).eval(), torch.randn(3, 5, 8)
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
        self._is_compiled = _is_compiled(model)
        self._without_compiler = contextlib.ExitStack()
        # what each spectrum and copula returned last
        self._drawn: dict[nn.Module, Any] = {}
        self._handles: list[RemovableHandle] = []
        self._left_out: set[str] = set()

    def __enter__(self) -> Recorder:
        self.recordings = {}
        if self._is_compiled:
            self._without_compiler.enter_context(torch.compiler.set_stance("force_eager"))

        # a function, which copies of the core share with it, and no method, which they would copy with all of this
        def keep(part: nn.Module, _: Any, drawn: Any) -> None:
            self._drawn[part] = drawn

        for name, (layer, core) in self._layers.items():
            self._handles += [part.register_forward_hook(keep) for part in _spectral_parts(core)]
            if layer is core:
                hook = self._once(name, self._record_sequences(name))
                handle = core.register_forward_hook(hook, with_kwargs=True)
            else:
                hook = self._once(name, self._record_edges(name, core))
                handle = layer.register_edge_update_forward_hook(hook)  # type: ignore[operator]
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        self._without_compiler.close()
        for handle in self._handles:
            handle.remove()
        self._handles, self._drawn = [], {}

    def _once(self, name: str, record: Callable[..., None]) -> Callable[..., None]:
        def hook(*seen: Any) -> None:
            if name in self.recordings or name in self._left_out:
                return
            try:
                record(*seen)
            except Exception as error:
                self._left_out.add(name)
                log.warning("no pictures of %s: %s: %s", name or "the layer", type(error).__name__, error)

        return hook

    def _record_sequences(self, name: str) -> Callable[..., None]:
        kept, asked = slice(self.max_sequences), slice(self.max_queries)

        def record(core: nn.Module, args: Any, kwargs: dict[str, Any], _: Any) -> None:
            assert isinstance(core, Core)
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            query, key = (_copy(given[part][kept]) for part in ("query", "key"))
            mask = args[3] if len(args) > 3 else kwargs.get("mask", Mask())
            mask = mask.select(torch.arange(len(query), device=query.device))
            rows = {part: x[..., asked, :] for part in ("pairs", "pair_bias") if (x := getattr(mask, part)) is not None}
            self.recordings[name] = SequenceRecording(
                **_describe(name, core, self._drawn, self.max_sequences),
                query=query[:, :, asked],
                key=key,
                mask=replace(mask, **rows),
                sequences=len(given["query"]),
                queries=query.size(-2),
            )

        return record

    def _record_edges(self, name: str, core: Core) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: Any, weights: Tensor) -> None:
            _, _, given = inputs
            i, j, keys = given["edge_index_i"], given["edge_index_j"], None
            if (replaced := given.get("replaced")) is not None:
                # self-loops of the graph in whose place the layer has put its own
                i, j, weights = i[~replaced], j[~replaced], weights[~replaced]
            if given["edge_attr"] is None:
                some = slice(None, None, max(1, -(-len(i) // _MAX_EDGES)))
                keys = given["keys"].detach()[j[some]]
                # a key may be both ends of its edge
                if core.head_dim == 2 * keys.size(-1):
                    keys = torch.cat([given["queries"].detach()[i[some]], keys], -1)
                keys = at_least_float32(keys).transpose(0, 1)
            self.recordings[name] = GraphRecording(
                **_describe(name, core, self._drawn, self.max_sequences),
                node=i.clone(),
                neighbour=j.clone(),
                weights=_copy(weights),
                keys=keys,
                nodes=len(given["queries"]),
            )

        return record


def _is_compiled(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is compiled: in place, or as what ``torch.compile`` has returned."""
    # to ask the compiler would import it, which takes seconds
    return any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )


def attention_layers(model: nn.Module) -> dict[str, tuple[nn.Module, Core]]:
    """Find what attends in a model: cores over sequences, and convolutions over graphs.

    Returns:
        Them and their cores by name; the core of a layer over sequences has the name of the layer that it is in.

    Example:
        >>> from ika_lightning.attention import IKAN, DotProduct
        >>> model = nn.ModuleDict({"first": IKAN(8, 2), "second": DotProduct(8, 2), "head": nn.Linear(8, 1)})
        >>> [(name, core.spectrum is None) for name, (_, core) in attention_layers(model).items()]
        [('first', False), ('second', True)]
    """
    modules = dict(model.named_modules())
    found: dict[str, tuple[nn.Module, Core]] = {}
    for name, module in modules.items():
        if isinstance(module, Core):
            # that of a model of transformers has a name of its own
            owner = name.removesuffix("kernel_core").removesuffix("core").removesuffix(".")
            over_edges = hasattr(modules[owner], "register_edge_update_forward_hook")
            found[owner] = (modules[owner] if over_edges else module, module)
    return found


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
        for name, (_, core) in attention_layers(model).items():
            if parts := _spectral_parts(core):
                recordings[name] = Recording(**_describe(name, core, {part: part(None) for part in parts}, 1))
    return recordings


def _spectral_parts(core: Core) -> list[nn.Module]:
    """The spectrum of a core and its copula, as far as it has them."""
    spectrum = core.spectrum
    copula = spectrum.copula if isinstance(spectrum, ImplicitSpectrum) else None
    return [part for part in (spectrum, copula) if part is not None]


def _describe(name: str, core: Core, drawn: dict[nn.Module, Any], most: int) -> dict[str, Any]:
    """Copy what makes the similarity and the magnitude of a layer, for the first ``most`` sequences."""
    copied = copy.deepcopy(core).requires_grad_(False).eval()
    if not any(x.dtype == torch.float64 for x in copied.parameters()):
        copied.float()
    described: dict[str, Any] = {"name": name, "core": copied}
    if parts := _spectral_parts(core):
        feature_map, _ = drawn[parts[0]]
        if isinstance(feature_map, Fourier):
            feature_map = type(feature_map)(
                tuple(_copy(w[:most] if w.dim() == 4 else w) for w in feature_map.frequencies)
            )
        described["feature_map"] = feature_map
        for copula in parts[1:]:
            factor = drawn[copula]
            described["copula"] = _copy(factor[:most] if factor.dim() == 3 else factor)
    return described


def _copy(x: Tensor) -> Tensor:
    return at_least_float32(x.detach()).clone()
