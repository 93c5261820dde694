"""Graphs whose nodes are to be classified: embedded ones, saved ones, and tables of nodes and edges."""

from __future__ import annotations

import pickle
import warnings
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data.cells import format_of
from ika_lightning.data.messages import closest, quoted, say
from ika_lightning.data.numbers import MISSING, PLAIN, NumberFormat, find_code, is_number, parse_numbers
from ika_lightning.data.table import read_rows, read_table, require_column
from ika_lightning.lazy import pandas as pd
from ika_lightning.lazy import torch_geometric as pyg
from ika_lightning.trust import Untrusted, plain_tensors, refused_code

__all__ = ["SPLITS", "NodeGraph", "check_graph", "load_graph", "read_graph"]

SPLITS = ("train", "val", "test")

# What is read of a saved graph.
_ATTRIBUTES = ("x", "edge_index", "edge_attr", "y", "num_nodes", *(f"{part}_mask" for part in SPLITS))


class NodeGraph(NamedTuple):
    """A graph, and what its numbers stand for.

    Args:
        graph: The graph: features of nodes, edges and perhaps features of edges, classes (-1 where unknown), and masks.
        names: Names of the nodes.
        classes: Names of the classes, in the order of their numbers.
        features: The columns of features, if the graph is a table.
        source: What errors call it.
    """

    graph: pyg.data.Data
    names: list[str]
    classes: list[str]
    features: list[str] | None
    source: str

    @classmethod
    def of(cls, graph: pyg.data.Data, source: str) -> NodeGraph:
        """A graph whose nodes and classes have no names but their numbers, checked.

        Args:
            graph: The graph.
            source: What errors call it.

        Raises:
            ValueError: If it is none; see :func:`check_graph`.
        """
        check_graph(graph, source)
        names, classes = ([str(n) for n in range(count)] for count in (len(graph.x), int(graph.y.max()) + 1))
        return cls(graph, names, classes, None, source)

    def asked(self, part: str) -> Tensor:
        """Which nodes of a split have a known class, (n,) bool.

        Args:
            part: The split.
        """
        return self.graph[f"{part}_mask"] & (self.graph.y >= 0)


def load_graph(path: str) -> pyg.data.Data:
    """Load a graph that was saved as ``torch.save(data, path)``, without running code that the file may carry.

    Args:
        path: A file with a PyG ``Data`` of tensors, or a dict of them, with ``x`` and ``edge_index``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, is damaged, or would run code.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}; check the spelling and the folder")
    try:
        with plain_tensors(*_made_of()):
            found = torch.load(path, map_location="cpu", weights_only=True)
        values = found.to_dict() if isinstance(found, pyg.data.Data) else found
        graph = pyg.data.Data.from_dict(values) if isinstance(values, dict) else None
    except pickle.UnpicklingError as error:
        raise Untrusted(f"{refused_code(path, error)}; save a PyG Data, or a dict, of tensors alone") from None
    # a damaged pickle raises anything
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of torch.save, or is damaged ({reason}); save the graph again") from None
    if graph is None:
        raise ValueError(f"{path} holds a {type(found).__name__}, not a graph; save a PyG Data of tensors")
    for name in ("x", "edge_index"):
        if not isinstance(graph.get(name), Tensor):
            raise ValueError(f"{path}: the graph has no {name}, only {quoted(graph.keys())}; add it and save again")
    if others := sorted(set(map(str, graph.keys())) - set(_ATTRIBUTES)):
        say(f"{path}: {quoted(others)} of the graph is not used; what is used is called {', '.join(_ATTRIBUTES)}")
    return graph


def _made_of() -> tuple[type, ...]:
    """What a saved graph is made of, besides tensors."""
    data, edges = pyg.data.data, pyg.edge_index
    return (
        data.Data, data.DataEdgeAttr, data.DataTensorAttr, pyg.data.storage.GlobalStorage,
        edges.EdgeIndex, edges.CatMetadata, edges.SortOrder,
    )  # fmt: skip


def check_graph(graph: pyg.data.Data, source: str) -> None:
    """Check each attribute of a graph against its nodes or edges; one without classes gets -1 for each node.

    Args:
        graph: The graph. Sparse features become dense.
        source: What errors call it.

    Raises:
        ValueError: If they do not make a graph.
    """
    for name in _ATTRIBUTES:
        value = graph.get(name)
        if isinstance(value, Tensor) and value.layout != torch.strided:
            graph[name] = value.to_dense()
        elif value is not None and not isinstance(value, Tensor) and name != "num_nodes":
            raise ValueError(f"{source}: {name} must be a tensor, got a {type(value).__name__}; save it as one")
    x, edge_index = graph.x, graph.edge_index
    if x.dim() != 2 or not x.is_floating_point() or not x.numel():
        raise ValueError(
            f"{source}: x must be numbers of shape (nodes, features), one of each at least, got {x.dtype} "
            f"{tuple(x.shape)}; save x.float()"
        )
    # a float64 may be too large for a float32
    graph.x = x = x.float()
    if not x.isfinite().all():
        node, feature = (~x.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"{source}: feature {feature} of node {node} is {x[node, feature]}; fill it in")
    if graph.num_nodes != len(x):
        raise ValueError(f"{source}: num_nodes is {graph.num_nodes}, but x has {len(x)} rows; give each node one")
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or not _is_whole(edge_index):
        raise ValueError(
            f"{source}: edge_index must be whole numbers of shape (2, edges), got {edge_index.dtype} "
            f"{tuple(edge_index.shape)}"
        )
    wrong = ((edge_index < 0) | (edge_index >= len(x))).any(0)
    if wrong.any():
        column = int(wrong.nonzero()[0])
        raise ValueError(
            f"{source}: column {column} of edge_index, {edge_index[:, column].tolist()}, names a node that is missing; "
            f"nodes are 0 to {len(x) - 1}"
        )
    graph.edge_index = edge_index.long()
    _check_edge_attr(graph, source)
    if graph.y is None:
        graph.y = torch.full((len(x),), -1)
    if graph.y.shape != (len(x),) or not _is_whole(graph.y):
        raise ValueError(
            f"{source}: y must be a whole number for each node, got {graph.y.dtype} {tuple(graph.y.shape)}"
        )
    graph.y = graph.y.long()
    if (graph.y < -1).any():
        node = int((graph.y < -1).nonzero()[0])
        raise ValueError(f"{source}: y of node {node} is {graph.y[node]}; a class is 0 or more, an unknown one is -1")
    _check_masks(graph, source)


def _check_edge_attr(graph: pyg.data.Data, source: str) -> None:
    edge_attr, edges = graph.edge_attr, graph.edge_index.size(1)
    if edge_attr is None:
        return
    fits = edge_attr.dim() in (1, 2) and len(edge_attr) == edges and edge_attr.shape[1:] != (0,)
    if not fits or edge_attr.is_complex():
        raise ValueError(
            f"{source}: edge_attr must have a row for each of the {edges} edges, of shape ({edges}, features), got "
            f"{edge_attr.dtype} {tuple(edge_attr.shape)}"
        )
    edge_attr = edge_attr.float() if edge_attr.dim() == 2 else edge_attr.float().unsqueeze(1)
    if not edge_attr.isfinite().all():
        edge = int((~edge_attr.isfinite()).nonzero()[0, 0])
        raise ValueError(f"{source}: edge_attr of edge {edge} is not finite; fill it in")
    graph.edge_attr = edge_attr


def _check_masks(graph: pyg.data.Data, source: str) -> None:
    masks = {part: graph.get(f"{part}_mask") for part in SPLITS}
    for part, mask in masks.items():
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(graph.x),)):
            raise ValueError(
                f"{source}: {part}_mask must be a boolean for each node, got {mask.dtype} {tuple(mask.shape)}; "
                "choose one of several splits"
            )
    if masks["train"] is None and (other := next((part for part in SPLITS if masks[part] is not None), None)):
        raise ValueError(f"{source} has a {other}_mask but no train_mask; say which nodes are for training as well")
    for first, second in combinations((part for part in SPLITS if masks[part] is not None), 2):
        if both := int((masks[first] & masks[second]).sum()):
            warnings.warn(
                f"{source}: {both} nodes are in {first}_mask and in {second}_mask; figures measured on them flatter "
                "the model",
                stacklevel=3,
            )


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def read_graph(
    nodes: str,
    edges: str,
    *,
    node: str = "node",
    label: str = "label",
    split: str = "split",
    features: list[str] | None = None,
    classes: list[str] | None = None,
    undirected: bool = True,
    edges_header: bool | None = None,
    separator: str | None = None,
    written: NumberFormat = PLAIN,
    missing_values: list[str] | None = None,
) -> NodeGraph:
    """Read a graph from a table of nodes and a table of edges.

    Args:
        nodes: A table with a row for each node: a column that names it, one of labels and one of splits (``train``,
            ``val`` or ``test``), both of which may be missing or have empty cells, and features, which are numbers.
        edges: A table whose first two columns name the source and the target of each edge; others are its features.
        node: The column that names a node.
        label: The column of labels.
        split: The column of splits.
        features: The columns of features; all others if None.
        classes: The labels that there are; those that occur, sorted, if None.
        undirected: Take each edge in both directions, once.
        edges_header: Whether the first line of the edges is a header. None: not if both of its first cells name nodes;
            a line of which that is not certain is refused.
        separator: What separates cells; by default a comma or a tab, by a file's name. ``"auto"`` looks for it.
        written: How numbers are written.
        missing_values: Labels that say that nothing is known, besides empty cells. None refuses those that may say so,
            such as ``NA``.

    Returns:
        The graph, with a mask for each split that occurs.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the tables do not make a graph; the message names the row.
    """
    table = read_table(nodes, separator)
    require_column(table, node, nodes, "--data.node")
    names = [name.strip() for name in table[node]]
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name:
            raise ValueError(f"{nodes}, row {row + 1}: the node has no name; fill in the column {node!r}")
        if (first := row_of.setdefault(name, row)) != row:
            raise ValueError(
                f"{nodes}, row {row + 1}: node {name!r} is there already, in row {first + 1}; remove one of them"
            )
    special = {node, label, split}
    chosen = [column for column in table.columns if column not in special] if features is None else features
    if not chosen:
        raise ValueError(f"{nodes} has no features; its columns are {quoted(list(table.columns))}")
    for column in chosen:
        require_column(table, column, nodes)
    columns = [_read_numbers(table[column], nodes, "a feature", written) for column in chosen]
    edge_table = _read_edge_table(edges, row_of, edges_header, separator)
    edge_index, edge_attr = _read_edges(edge_table, edges, row_of, nodes, undirected, written)
    y, classes = _read_labels(table, label, nodes, classes, missing_values)
    graph = pyg.data.Data(
        x=torch.from_numpy(np.stack(columns, 1)).float(), edge_index=edge_index, edge_attr=edge_attr, y=y
    )
    for part, mask in _read_splits(table, split, nodes).items():
        graph[f"{part}_mask"] = mask
    check_graph(graph, nodes)
    return NodeGraph(graph, names, classes, chosen, nodes)


def _read_edge_table(path: str, row_of: dict[str, int], has_header: bool | None, separator: str | None) -> pd.DataFrame:
    """The table of edges, whose first line may be an edge."""
    if format_of(path) == ".parquet":
        return read_table(path, separator)
    is_certain = has_header is not None
    first = [cell.strip() for cell in next(read_rows(path, separator))]
    if len(first) < 2:
        raise ValueError(f"{path} has one column; it needs two, the source and the target of each edge")
    ends, others = first[:2], first[2:]
    known = [name in row_of for name in ends]
    if has_header is None:
        if len(first) > 1 and all(known) and all(map(is_number, others)):
            has_header = False
            say(f"{path}: line 1, {quoted(first)}, is read as an edge, as it names two nodes")
        elif not any(known) and not all(map(is_number, ends)):
            has_header = True
            say(f"{path}: line 1, {quoted(first)}, is read as a header, as it names no node")
        else:
            raise ValueError(
                f"{path}: is line 1, {quoted(first)}, a header or an edge? Say which with --data.edges_header true or "
                "false"
            )
    if has_header:
        return read_table(path, separator, header_is_certain=is_certain)
    rows = list(read_rows(path, separator))
    return pd.DataFrame(rows, columns=[str(number) for number in range(1, len(first) + 1)], dtype="str")


def _read_edges(
    table: pd.DataFrame, path: str, row_of: dict[str, int], nodes: str, undirected: bool, written: NumberFormat
) -> tuple[Tensor, Tensor | None]:
    if table.shape[1] < 2:
        raise ValueError(f"{path} has one column; it needs two, the source and the target of each edge")
    ends = []
    for column in table.columns[:2]:
        numbers = []
        for row, name in enumerate(table[column]):
            if name.strip() not in row_of:
                raise ValueError(
                    f"{path}, row {row + 1}: there is no node {name.strip()!r} in {nodes}"
                    f"{closest(name.strip(), row_of)}; add it there, or remove the edge"
                )
            numbers.append(row_of[name.strip()])
        ends.append(numbers)
    edge_index = torch.tensor(ends)
    columns = [_read_numbers(table[column], path, "a feature of edges", written) for column in table.columns[2:]]
    edge_attr = torch.from_numpy(np.stack(columns, 1)).float() if columns else None
    if undirected and edge_attr is not None:
        least, most = (
            pyg.utils.to_undirected(edge_index, edge_attr, len(row_of), reduce)[1] for reduce in ("min", "max")
        )
        edge_index, edge_attr = pyg.utils.to_undirected(edge_index, edge_attr, len(row_of), reduce="mean")
        if (differ := (least != most).any(1) & (edge_index[0] <= edge_index[1])).any():
            say(
                f"{path}: {int(differ.sum())} edges occur more than once, in either direction, with other features; "
                "what counts is the mean (--data.undirected false keeps each as it is)"
            )
    elif undirected:
        edge_index = pyg.utils.to_undirected(edge_index, num_nodes=len(row_of))
    return edge_index, edge_attr


def _read_numbers(cells: pd.Series, source: str, role: str, written: NumberFormat) -> np.ndarray:
    """A column of finite numbers."""
    name = str(cells.name)
    values = parse_numbers(cells, name, source, role, written)
    if code := find_code(cells):
        raise ValueError(
            f"{source}: column {name!r} is {role}, but {code!r} is a code and no number; make a column of 0 and 1 for "
            "each code, or take the zeros in front away if they are numbers"
        )
    if np.isnan(values).any():
        row = int(np.isnan(values).argmax())
        raise ValueError(
            f"{source}, row {row + 1}, column {name!r}: {cells.iloc[row]!r} is no finite number; fill it in, or leave "
            "out the column or the row"
        )
    return values


def _read_labels(
    table: pd.DataFrame, label: str, source: str, classes: list[str] | None, missing_values: list[str] | None
) -> tuple[Tensor, list[str]]:
    if label not in table.columns:
        return torch.full((len(table),), -1), classes or []
    cells = [cell.strip() for cell in table[label]]
    if missing_values is None and (unclear := [row for row, cell in enumerate(cells) if cell and cell in MISSING]):
        cell = cells[unclear[0]]
        raise ValueError(
            f"{source}, row {unclear[0] + 1}: the label {cell!r} may be a class or say that none is known; say that it "
            f"is a class with --data.missing_values '[]', or that it is none with --data.missing_values '[\"{cell}\"]'"
        )
    cells = ["" if cell in (missing_values or ()) else cell for cell in cells]
    known = sorted({cell for cell in cells if cell}) if classes is None else classes
    number = {name: position for position, name in enumerate(known)}
    if strange := [row for row, cell in enumerate(cells) if cell and cell not in number]:
        raise ValueError(
            f"{source}, row {strange[0] + 1}: label {cells[strange[0]]!r} is none of the classes of training, "
            f"{quoted(known)}; correct it, or train anew"
        )
    return torch.tensor([number.get(cell, -1) for cell in cells]), known


def _read_splits(table: pd.DataFrame, split: str, source: str) -> dict[str, Tensor]:
    if split not in table.columns:
        return {}
    cells = [cell.strip() for cell in table[split]]
    for row, cell in enumerate(cells):
        if cell not in (*SPLITS, *MISSING):
            raise ValueError(
                f"{source}, row {row + 1}: split {cell!r} is none of {quoted(SPLITS)} or empty"
                f"{closest(cell, SPLITS)}; correct it"
            )
    return {part: torch.tensor([cell == part for cell in cells]) for part in SPLITS if part in cells}
