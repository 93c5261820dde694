r"""Where attention goes: maps of weights, how many keys they are spread over, and what magnitude has to do with it.

.. math::
    a_{ij} = \frac{w_{ij}}{\sum_{j'} w_{ij'}}, \qquad
    \log w_{ij} = \log \kappa(q_i, k_j) + \frac{|k_j|_p^2}{2 \sqrt d}, \qquad
    H_i = -\sum_j a_{ij} \log a_{ij}

The exponential of the entropy is the effective number of keys: m for weights that are all alike, 1 for all on one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ika_lightning.attention.backends.reference import log_weight_attention
from ika_lightning.pictures.canvas import COLOURS, array, colour_bar, few_ticks, panels, shortened, styled, tiles
from ika_lightning.pictures.record import GraphRecording, Recording, SequenceRecording
from ika_lightning.pictures.similarity import log_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# --- Numbers ----------------------------------------------------------------------------------------------------------


def attention_weights(recording: SequenceRecording) -> Tensor:
    """Compute the weights by their definition: what the layer returns with ``need_weights=True``; (b, h, n, m)."""
    query, key, mask = recording.query, recording.key, recording.mask
    log_weight = log_similarity(recording, query, key) + recording.core.magnitude(key).unsqueeze(-2)
    for bias in (mask.key_bias, mask.pair_bias):
        log_weight = log_weight if bias is None else log_weight + bias
    _, weights = log_weight_attention(log_weight, key, mask.allowed(query.size(-2), key.size(-2), key.device))
    return weights


def entropy(recording: Recording) -> Tensor | None:
    """Return the entropy of each query's weights, or of each node's, in nats; (h, r). None if nothing was seen.

    Queries that are padding cannot be told from others where a layer attends to itself alone: keys that may not be
    attended to are left out of the queries where there are as many of them as queries.
    """
    if isinstance(recording, SequenceRecording):
        weights = attention_weights(recording)
        of_queries = -torch.xlogy(weights, weights).sum(-1)  # (b, h, n)
        real = weights.sum(-1) > 0
        if recording.mask.keys is not None and recording.query.size(-2) == recording.key.size(-2):
            real = real & recording.mask.keys.squeeze(-2)
        return of_queries.transpose(0, 1)[:, real[:, 0]]
    if isinstance(recording, GraphRecording):
        terms = -torch.xlogy(recording.weights, recording.weights)
        nodes = int(recording.node.max()) + 1 if len(recording.node) else 0
        attends = torch.bincount(recording.node, minlength=nodes) > 0
        return terms.new_zeros(nodes, recording.num_heads).index_add(0, recording.node, terms)[attends].mT
    return None


def log_magnitudes(recording: Recording) -> Tensor | None:
    """Return the log-magnitude of each key that may be attended to, (h, r); None if no key was seen."""
    if isinstance(recording, SequenceRecording):
        # (h, b, m)
        of_keys = recording.core.magnitude(recording.key).transpose(0, 1)
        keys = recording.mask.keys
        return of_keys.flatten(1) if keys is None else of_keys[:, keys.expand(len(recording.key), 1, 1, -1)[:, 0, 0]]
    if isinstance(recording, GraphRecording) and recording.keys is not None:
        magnitude: Tensor = recording.core.magnitude(recording.keys)
        return magnitude
    return None


def neighbourhoods(recording: GraphRecording, count: int = 2, most: int = 20) -> list[tuple[int, Tensor, Tensor]]:
    """Return the nodes with the largest neighbourhoods of at most ``most`` nodes, their neighbours and weights.

    Returns:
        Up to ``count`` of: the node, its neighbours (k,) and the weights (k, h), the heaviest in the mean first.
    """
    degree = torch.bincount(recording.node.cpu())
    fitting = degree.masked_fill(degree > most, 0)
    found = []
    for node in fitting.argsort(descending=True, stable=True)[:count].tolist():
        if fitting[node]:
            edges = (recording.node == node).nonzero().squeeze(1)
            edges = edges[recording.weights[edges].mean(1).argsort(descending=True, stable=True)]
            found.append((node, recording.neighbour[edges], recording.weights[edges]))
    return found


# --- Drawing ----------------------------------------------------------------------------------------------------------

_MAX_HEADS = 8
_MAX_NAMED = 40  # positions with names
_MAX_POSITIONS = 64  # others; more of them are taken together
_MAX_LABELS = 24

Names = Sequence[Sequence[str]]


@styled
def draw_maps(recording: SequenceRecording, names: tuple[Names, Names] | None = None, examples: int = 2) -> Figure:
    """Draw the weights of each head on a few sequences as heat maps.

    Args:
        recording: What was seen.
        names: Names of the queries and of the keys of each sequence, to be written along the axes. A sequence ends
            where its names do, or after 40; without names, where its keys may no longer be attended to, and many keys
            are summed up in groups.
        examples: How many sequences to draw.

    Example:
        >>> from ika_lightning.pictures.record import Recorder
        >>> from ika_lightning.attention import IKAN
        >>> layer, x = IKAN(8, 2).eval(), torch.randn(3, 5, 8)
        >>> with torch.no_grad(), Recorder(layer) as recorder:
        ...     out, _ = layer(x, x, x)
        >>> [text.get_text() for text in draw_maps(recorder.recordings[""]).axes[0].texts]
        ['head 0', 'head 1']
    """
    weights = attention_weights(recording)[:examples, :_MAX_HEADS]
    examples, heads = weights.shape[:2]
    each = 1.15 if heads > 4 else 1.7
    figure, axes = panels(
        examples, 1, f"Attention: {recording.name}", width=each * heads, height=each,
        left=1.0 if names else 0.6, bottom=0.85 if names else 0.5, top=0.5, right=0.7, gap=(0.0, 0.9 if names else 0.5),
    )  # fmt: skip
    for example, (panel,) in enumerate(axes):
        rows, columns, named = _extent(recording, weights, names, example)
        shown = array(_grouped(weights[example, :, :rows, :columns]))
        titles = [f"head {head}" for head in range(heads)]
        image, corners = tiles(
            panel, list(shown), titles, heads, 0.12, vmin=0.0, vmax=max(float(shown.max()), 1e-6), cmap="viridis"
        )
        panel.set(ylabel="query", xlabel="key" if example == examples - 1 or not named else "")
        if named is None:
            panel.set_xticks([0, shown.shape[2] - 1], ["0", str(columns - 1)])
            panel.set_yticks([0, shown.shape[1] - 1], ["0", str(rows - 1)])
        else:
            panel.tick_params(length=0)
            every = -(-rows // _MAX_LABELS)
            panel.set_yticks(range(0, rows, every), [shortened(name, 11) for name in named[0][:rows:every]], fontsize=6)
            every = -(-columns // (_MAX_LABELS if heads <= 4 else _MAX_LABELS // 2))
            labels = [shortened(name, 11) for name in named[1][:columns:every]]
            # above each head as long as they are few, else the first alone
            shown_at = corners if len(labels) * heads <= 80 else corners[:1]
            places = [left + 0.5 + column for left, _ in shown_at for column in range(0, columns, every)]
            panel.set_xticks(places, labels * len(shown_at), fontsize=6, rotation=90)
        colour_bar(figure, image, panel, "weight")
    return figure


def _extent(
    recording: SequenceRecording, weights: Tensor, names: tuple[Names, Names] | None, example: int
) -> tuple[int, int, tuple[Sequence[str], Sequence[str]] | None]:
    """How many queries and keys of an example to draw, without padding, and their names."""
    rows, columns, named = weights.size(-2), weights.size(-1), None
    key_mask = recording.mask.keys
    if names is not None and example < len(names[0]):
        named = names[0][example], names[1][example]
        rows, columns = min(rows, len(named[0]), _MAX_NAMED), min(columns, len(named[1]), _MAX_NAMED)
    elif key_mask is not None:
        real = key_mask[example % len(key_mask), 0, 0].nonzero()
        last = int(real.max()) + 1 if len(real) else 1
        rows, columns = last if rows == columns else rows, last
    return max(1, rows), max(1, columns), named


def _grouped(weights: Tensor) -> Tensor:
    """Sum the weights (h, n, m) of neighbouring keys, and average those of neighbouring queries, until all fit."""
    rows, columns = (-(-size // _MAX_POSITIONS) for size in weights.shape[1:])
    weights = F.pad(weights, (0, -weights.size(2) % columns)).unflatten(2, (-1, columns)).sum(3)
    short = -weights.size(1) % rows
    grouped = F.pad(weights, (0, 0, 0, short)).unflatten(1, (-1, rows)).sum(2) / rows
    if short:
        grouped[:, -1] *= rows / (rows - short)
    return grouped


@styled
def draw_neighbourhoods(recording: GraphRecording, names: Sequence[str] | None = None) -> Figure:
    """Draw the weights of each head on the neighbourhoods of a few nodes.

    Args:
        recording: What was seen.
        names: The names of all nodes; their numbers if None.

    Example:
        >>> from ika_lightning.pictures.record import Recorder
        >>> from ika_lightning.attention import KernelGATConv
        >>> layer = KernelGATConv(8, 4, heads=2).eval()
        >>> with torch.no_grad(), Recorder(layer) as recorder:
        ...     out = layer(torch.randn(3, 8), torch.tensor([[0, 1], [1, 2]]))
        >>> [panel.get_title() for panel in draw_neighbourhoods(recorder.recordings[""]).axes[:2]]
        ['node 1', 'node 2']
    """
    found = neighbourhoods(recording)
    heads = min(recording.num_heads, _MAX_HEADS)
    longest = max((len(neighbours) for _, neighbours, _ in found), default=1)
    figure, axes = panels(
        max(1, len(found)), 1, f"Attention to neighbours: {recording.name}",
        width=max(2.4, 0.26 * longest), height=max(0.7, 0.17 * heads), bottom=0.8, top=0.6, right=0.8, gap=(0.1, 1.0),
    )  # fmt: skip
    for (node, neighbours, weights), (panel,) in zip(found, axes, strict=False):
        shown = array(weights[:, :heads].mT)
        image = panel.imshow(shown, vmin=0.0, vmax=max(float(shown.max()), 1e-6), aspect="auto", cmap="viridis")
        titles = [str(j) if names is None else shortened(names[j], 9) for j in neighbours.tolist()]
        panel.set(yticks=range(heads), ylabel="head", xlabel="neighbour, heaviest first")
        panel.set_xticks(range(len(titles)), titles, rotation=90)
        panel.set_title(f"node {node if names is None else shortened(names[node], 20)}")
        colour_bar(figure, image, panel, "weight")
    return figure


def _exponents(recording: Recording) -> str:
    """Say what p is: the number, or the least and the largest of the heads'."""
    p = recording.core.p
    if isinstance(p, float):
        return f"p = {p:g}"
    return f"p learned, {float(p.min()):.2f} to {float(p.max()):.2f}"


@styled
def draw_magnitude(recording: Recording) -> Figure:
    """Draw, for each head, how log-magnitude, entropy and effective number of keys are distributed.

    A thin line reaches from the 5th to the 95th percentile, a thick one over the middle half; the mark is the median.

    Example:
        >>> from ika_lightning.pictures.record import Recorder
        >>> from ika_lightning.attention import IKAN
        >>> layer, x = IKAN(8, 2).eval(), torch.randn(3, 5, 8)
        >>> with torch.no_grad(), Recorder(layer) as recorder:
        ...     out, _ = layer(x, x, x)
        >>> [panel.get_xlabel() for panel in draw_magnitude(recorder.recordings[""]).axes]
        ['log-magnitude of keys', 'entropy of weights, nats', 'effective number of keys']
    """
    spread = entropy(recording)
    measured = [
        ("log-magnitude of keys", log_magnitudes(recording)),
        ("entropy of weights, nats", spread),
        ("effective number of keys", None if spread is None else spread.exp()),
    ]
    shown = [
        (label, values[:_MAX_HEADS].float()) for label, values in measured if values is not None and values.numel()
    ]
    heads = min(recording.num_heads, _MAX_HEADS)
    title = f"Magnitude ({_exponents(recording)}) and sparsity: {recording.name}"
    figure, [row] = panels(
        1, max(1, len(shown)), title, width=1.9, height=max(0.8, 0.2 * heads), top=0.4, left=0.55, gap=(0.25, 0)
    )
    for (label, values), panel in zip(shown, row, strict=False):
        low, first, middle, third, high = array(
            values.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).to(values), 1)
        )
        y = range(heads)
        panel.hlines(y, low, high, color=COLOURS[0], linewidth=0.8)
        panel.hlines(y, first, third, color=COLOURS[5], linewidth=6)
        panel.plot(middle, y, "|", color=COLOURS[1], markersize=8, markeredgewidth=1.8)
        panel.set(ylim=(heads - 0.5, -0.5), xlabel=label)
        few_ticks(panel, y=False)
        panel.set_yticks(y if panel is row[0] else [])
    row[0].set_ylabel("head")
    return figure
