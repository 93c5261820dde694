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
from ika_lightning.pictures.canvas import (
    COLOURS,
    array,
    colour_bar,
    few_ticks,
    of_all,
    panels,
    shortened,
    styled,
    tiles,
)
from ika_lightning.pictures.record import GraphRecording, Recording, SequenceRecording
from ika_lightning.pictures.similarity import log_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a node that is drawn.
_MAX_NEIGHBOURS = 20

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


def neighbourhoods(
    recording: GraphRecording, count: int = 2, most: int = _MAX_NEIGHBOURS
) -> list[tuple[int, Tensor, Tensor]]:
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
_INCHES_OF_A_NAME = 0.1

Names = Sequence[Sequence[str]]
# How many queries and keys of a sequence are shown, and their names.
_Extent = tuple[int, int, tuple[Sequence[str], Sequence[str]] | None]
#: What queries and keys are, in words.
Sides = tuple[str, str]
SIDES = "positions", "positions"


@styled
def draw_maps(
    recording: SequenceRecording,
    names: tuple[Names, Names] | None = None,
    examples: int = 2,
    sides: Sides = SIDES,
) -> Figure:
    """Draw the weights of each head on a few sequences as heat maps.

    Args:
        recording: What was seen.
        names: Names of the queries and of the keys of each sequence, to be written along the axes. A sequence ends
            where its names do, or after 40; without names, where its keys may no longer be attended to, and many keys
            are summed up in groups.
        examples: How many sequences to draw.
        sides: What the queries and the keys are, in words.

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
    extents = [_extent(recording, weights, names, example) for example in range(examples)]
    columns = min(heads, 4 if names is None or heads > 4 else 2)
    lines = -(-heads // columns)
    each = 3.2 / columns - 0.1
    high = min(each, 1.4)
    caption = (
        f"Weights from queries (rows of a map: {sides[0]}) to keys (columns: {sides[1]}); over all keys they sum to 1. "
        f"{_heads(recording)}. {_sequences(recording, extents, names is not None)}"
    )
    figure, axes = panels(
        examples, 1, f"Attention: {recording.name}", caption, width=3.2, height=lines * (high + 0.2) - 0.2,
        left=0.8, bottom=0.85 if names else 0.5, top=0.5, right=0.8, gap=(0.0, 0.9 if names else 0.5),
    )  # fmt: skip
    for example, (panel,) in enumerate(axes):
        rows, keys, named = extents[example]
        shown = array(_grouped(weights[example, :, :rows, :keys]))
        titles = [f"head {head}" for head in range(heads)]
        image, corners = tiles(
            panel, list(shown), titles, columns, (0.1 / each, 0.2 / high), vmin=0.0, vmax=max(float(shown.max()), 1e-6),
            cmap="viridis",
        )  # fmt: skip
        panel.set(ylabel=f"query ({shortened(sides[0], 20)})", xlabel=f"key ({shortened(sides[1], 30)})")
        # the first of the last row of maps
        left, top = corners[(lines - 1) * columns]
        across = shown.shape[2], keys, None if named is None else named[1]
        down = shown.shape[1], rows, None if named is None else named[0]
        # names of keys stand below the whole last row of maps, as long as they are few
        lowest = corners[(lines - 1) * columns :] if named is not None and keys * columns <= 80 else [(left, top)]
        places, labels = _ticks(*across, inches=each)
        panel.set_xticks(
            [corner + 0.5 + place for corner, _ in lowest for place in places], labels * len(lowest),
            fontsize=7 if named is None else 6, rotation=0 if named is None else 90,
        )  # fmt: skip
        places, labels = _ticks(*down, inches=high)
        panel.set_yticks([top + 0.5 + place for place in places], labels, fontsize=7 if named is None else 6)
        if named is not None:
            panel.tick_params(length=0)
        colour_bar(figure, image, panel, "weight")
    return figure


def _ticks(cells: int, positions: int, names: Sequence[str] | None, inches: float) -> tuple[list[int], list[str]]:
    """Which cells of a map have a label: as many names as there is room for, or both ends and the middle."""
    if names is not None:
        every = -(-positions // max(1, int(inches / _INCHES_OF_A_NAME)))
        return list(range(0, positions, every)), [shortened(name, 11) for name in names[:positions:every]]
    group = -(-positions // cells)
    places = sorted({0, (cells - 1) // 2, cells - 1})
    # the last is named by the last of its group
    return places, [str(positions if place == cells - 1 else place * group + 1) for place in places]


def _heads(recording: Recording) -> str:
    said = of_all(min(recording.num_heads, _MAX_HEADS), recording.num_heads, "heads")
    return said[0].upper() + said[1:]


def _sequences(recording: SequenceRecording, extents: Sequence[_Extent], named: bool) -> str:
    """Say of which sequences maps are, and how much of each is shown."""
    length, keys = recording.queries, recording.key.size(-2)
    said = f"Shown: {of_all(len(extents), recording.sequences, 'sequences')} of one batch; "
    if named:
        cut = any(
            max(len(names[0]) - rows, len(names[1]) - columns) > 0
            for rows, columns, names in extents
            if names is not None
        )
        return f"{said}of each, the first {_MAX_NAMED} positions at most." if cut else f"{said}each is shown whole."
    rows, columns, _ = extents[0]
    parts = [of_all(rows, length, "queries")] if rows < length else [f"all {length:,} queries"]
    parts += [of_all(columns, keys, "keys")] if columns < keys else [f"all {keys:,} keys"]
    groups = [-(-size // _MAX_POSITIONS) for size in (rows, columns)]
    if groups[0] > 1:
        parts[0] += f" (a row is the mean of {groups[0]})"
    if groups[1] > 1:
        parts[1] += f" (a column is the sum over {groups[1]})"
    return f"{said}of {'it' if len(extents) == 1 else 'the first'}, {' and '.join(parts)}."


@styled
def draw_tokens(recording: SequenceRecording, names: Names, examples: int = 3) -> Figure:
    """Draw how much weight each token of a few sentences gets, by each head and by all of them.

    Args:
        recording: What was seen.
        names: The tokens of each sentence.
        examples: How many sentences to draw.

    Example:
        >>> from ika_lightning.pictures.record import Recorder
        >>> from ika_lightning.attention import IKAN
        >>> layer, x = IKAN(8, 2, batch_first=True).eval(), torch.randn(1, 3, 8)
        >>> with torch.no_grad(), Recorder(layer) as recorder:
        ...     out, _ = layer(x, x, x)
        >>> panel = draw_tokens(recorder.recordings[""], [["a", "good", "film"]]).axes[0]
        >>> [label.get_text() for label in panel.get_xticklabels()]
        ['a', 'good', 'film']
    """
    weights = attention_weights(recording)[:examples, :_MAX_HEADS]
    examples = min(len(weights), len(names))
    heads = weights.size(1)
    lengths = [max(1, min(weights.size(-1), weights.size(-2), len(names[each]))) for each in range(examples)]
    cut = any(len(names[each]) > _MAX_NAMED for each in range(examples))
    caption = (
        f"How much weight each token gets, the mean over the queries of its sentence; 1 is what it would get if all "
        f"tokens had the same. Top: the mean over {of_all(heads, recording.num_heads, 'heads')}; below, each head. "
        f"Shown: {of_all(examples, recording.sequences, 'sentences')} of one batch"
        f"{f', of each the first {_MAX_NAMED} tokens at most' if cut else ''}."
    )
    figure, axes = panels(
        max(1, examples), 1, f"Weight of each token: {recording.name}", caption, width=3.3, height=0.13 * (heads + 1),
        left=0.7, right=0.8, top=0.4, bottom=0.7, gap=(0.0, 0.75),
    )  # fmt: skip
    for example, (panel,) in zip(range(examples), axes, strict=False):
        length = lengths[example]
        received = weights[example, :, :length, :length].mean(1) * length
        shown = array(torch.cat([received.mean(0, keepdim=True), received])[:, :_MAX_NAMED])
        image = panel.imshow(
            shown, vmin=0.0, vmax=max(float(shown.max()), 1e-6), aspect="auto", cmap="viridis", interpolation="none"
        )
        places, labels = _ticks(shown.shape[1], shown.shape[1], names[example], 3.3)
        panel.set_xticks(places, labels, fontsize=6, rotation=90)
        panel.set_yticks(
            [0, *range(1, heads + 1, -(-heads // 4))], ["mean", *map(str, range(0, heads, -(-heads // 4)))]
        )
        panel.tick_params(length=0)
        panel.set_ylabel("head")
        colour_bar(figure, image, panel, "times")
    return figure


@styled
def draw_alignment(
    recording: SequenceRecording, names: tuple[Names, Names], examples: int = 2, sides: Sides = SIDES
) -> Figure:
    """Draw what each word looks at in another sentence, the mean over all heads, with the words at both sides.

    Args:
        recording: What was seen.
        names: The words that attend and those that are attended to, of each pair of sentences.
        examples: How many pairs to draw.
        sides: What they are, in words.

    Example:
        >>> from ika_lightning.pictures.record import Recorder
        >>> from ika_lightning.attention import IKAN
        >>> layer, x, y = IKAN(8, 2).eval(), torch.randn(2, 1, 8), torch.randn(3, 1, 8)
        >>> with torch.no_grad(), Recorder(layer) as recorder:
        ...     out, _ = layer(x, y, y)
        >>> panel = draw_alignment(recorder.recordings[""], ([["ein", "Film"]], [["a", "film", "."]])).axes[0]
        >>> [label.get_text() for label in panel.get_yticklabels()]
        ['ein', 'Film']
    """
    weights = attention_weights(recording)[:examples].mean(1)
    examples = min(len(weights), len(names[0]))
    whole = [(len(names[0][each]), len(names[1][each])) for each in range(examples)]
    cut = any(max(sizes) > _MAX_NAMED for sizes in whole)
    heads = recording.num_heads
    caption = (
        f"Weights from queries (rows: {sides[0]}) to keys (columns: {sides[1]}), the mean over "
        f"{of_all(heads, heads, 'heads')}; over all keys they sum to 1. "
        f"Shown: {of_all(examples, recording.sequences, 'pairs')} of one batch"
        f"{f', of each the first {_MAX_NAMED} positions at most' if cut else ''}."
    )
    figure, axes = panels(
        max(1, examples), 1, f"Alignment: {recording.name}", caption, width=3.0, height=2.2, left=1.0, right=0.8,
        top=0.4, bottom=0.85, gap=(0.0, 0.95),
    )  # fmt: skip
    for example, (panel,) in zip(range(examples), axes, strict=False):
        rows, columns = (max(1, min(size, _MAX_NAMED)) for size in whole[example])
        shown = array(weights[example, :rows, :columns])
        image = panel.imshow(
            shown, vmin=0.0, vmax=max(float(shown.max()), 1e-6), aspect="auto", cmap="viridis", interpolation="none"
        )
        for axis, inches, of in ((panel.yaxis, 2.2, names[0]), (panel.xaxis, 3.0, names[1])):
            size = shown.shape[0 if axis is panel.yaxis else 1]
            places, labels = _ticks(size, size, of[example], inches)
            axis.set_ticks(places, labels, fontsize=6, rotation=90 if axis is panel.xaxis else 0)
        panel.tick_params(length=0)
        panel.set(ylabel=f"query ({shortened(sides[0], 20)})", xlabel=f"key ({shortened(sides[1], 30)})")
        colour_bar(figure, image, panel, "weight")
    return figure


def _extent(recording: SequenceRecording, weights: Tensor, names: tuple[Names, Names] | None, example: int) -> _Extent:
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
        ['node 1 and its 2 neighbours', 'node 2 and its 2 neighbours']
    """
    found = neighbourhoods(recording)
    heads = min(recording.num_heads, _MAX_HEADS)
    caption = (
        "Weight that a node gives to its neighbours, itself included where the layer adds it: a row is a head "
        f"({of_all(heads, recording.num_heads, 'heads')}) and sums to 1; the heaviest neighbour in the mean over heads "
        f"comes first. Shown: {len(found)} of {recording.nodes:,} nodes, those with most neighbours up to "
        f"{_MAX_NEIGHBOURS}, all of which are drawn."
    )
    figure, axes = panels(
        max(1, len(found)), 1, f"Attention to neighbours: {recording.name}", caption,
        width=3.2, height=max(0.7, 0.17 * heads), bottom=0.8, top=0.6, right=0.8, gap=(0.1, 1.0),
    )  # fmt: skip
    for (node, neighbours, weights), (panel,) in zip(found, axes, strict=False):
        shown = array(weights[:, :heads].mT)
        image = panel.imshow(
            shown, vmin=0.0, vmax=max(float(shown.max()), 1e-6), aspect="auto", cmap="viridis", interpolation="none"
        )
        titles = [str(j) if names is None else shortened(names[j], 9) for j in neighbours.tolist()]
        panel.set(yticks=range(heads), ylabel="head", xlabel="neighbour, heaviest first")
        panel.set_xticks(range(len(titles)), titles, rotation=90)
        name = node if names is None else shortened(names[node], 20)
        panel.set_title(f"node {name} and its {len(neighbours)} neighbours")
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
        ['log-magnitude', 'entropy, nats', 'effective keys']
    """
    spread = entropy(recording)
    measured = [
        ("log-magnitude", log_magnitudes(recording)),
        ("entropy, nats", spread),
        ("effective keys", None if spread is None else spread.exp()),
    ]
    shown = [
        (label, values[:_MAX_HEADS].float()) for label, values in measured if values is not None and values.numel()
    ]
    heads = min(recording.num_heads, _MAX_HEADS)
    counts = {label: values.size(1) for label, values in shown}
    title = f"Magnitude ({_exponents(recording)}) and sparsity: {recording.name}"
    caption = f"{_heads(recording)}: median (mark), middle half (thick) and middle 90 % (thin line), "
    caption += f"of {_whose(recording, counts)}"
    if "effective keys" in counts:
        caption += (
            " Entropy is of the weights of a query; its exponential, the effective number of keys, is 1 if a query "
            "looks at one key, and the number of keys if it looks at all alike."
        )
    figure, [row] = panels(
        1, max(1, len(shown)), title, caption, width=1.2, height=max(0.8, 0.2 * heads), top=0.4, left=0.55,
        gap=(0.2, 0),
    )  # fmt: skip
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


def _whose(recording: Recording, counts: dict[str, int]) -> str:
    """Say of how many keys and queries magnitudes and entropies are."""
    keys, queries = counts.get("log-magnitude"), counts.get("entropy, nats")
    said = [f"{keys:,} keys" if keys else "", f"{queries:,} queries" if queries else ""]
    if isinstance(recording, GraphRecording):
        said = [f"{keys:,} keys" if keys else "", f"{queries:,} nodes" if queries else ""]
        return f"{' and '.join(filter(None, said))} of a graph of {recording.nodes:,} nodes."
    assert isinstance(recording, SequenceRecording)
    of = of_all(len(recording.query), recording.sequences, "sequences")
    first = f"; of each, {of_all(recording.query.size(-2), recording.queries, 'queries')}"
    return f"{' and '.join(filter(None, said))} in {of} of one batch{first}."
