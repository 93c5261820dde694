"""Graphs whose nodes are to be classified: embedded ones, saved ones, and tables of nodes and edges."""

import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.datasets import KarateClub
from torch_geometric.utils import to_undirected

from ika_lightning.data.messages import closest, quoted
from ika_lightning.data.numbers import MISSING, parse_numbers
from ika_lightning.data.table import read_table, require_column

__all__ = ["digits", "karate", "load_graph", "read_graph"]

SPLITS = ("train", "val", "test")


def karate() -> Data:
    """Zachary's karate club as PyG has it: 34 members, 4 communities, a member known of each.

    Example:
        >>> karate()
        Data(x=[34, 34], edge_index=[2, 156], y=[34], train_mask=[34])
    """
    return KarateClub()[0]


def digits(neighbours: int = 10) -> Data:
    """Scikit-learn's handwritten digits, each joined to those most like it.

    The distance of two digits is that of their 64 pixels. They are whole numbers, so neighbours are the same on
    every computer; of equally near ones, the first count. A digit is joined to another if either is a neighbour of the
    other.

    Args:
        neighbours: Number of neighbours of a digit.

    Returns:
        1,797 nodes with features in [0, 1] and labels 0 to 9.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("the digits come with scikit-learn: pip install 'ika-lightning[demo]'") from None
    pixels, label = load_digits(return_X_y=True)
    squares = np.square(pixels).sum(1)
    distance = squares[:, None] + squares - 2 * pixels @ pixels.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :neighbours]
    edges = np.stack([nearest.ravel(), np.repeat(np.arange(len(pixels)), neighbours)])
    return Data(
        x=torch.from_numpy(pixels / 16).float(),
        edge_index=to_undirected(torch.from_numpy(edges), num_nodes=len(pixels)),
        y=torch.from_numpy(label),
    )


def load_graph(path: str) -> Data:
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
        with torch.serialization.safe_globals([Data, DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ValueError(
            f"{path} holds {code[1] if code else 'more than tensors'}, which takes running code from the file to load: "
            "refused; save a PyG Data, or a dict, of tensors alone"
        ) from None
    except (RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of torch.save, or is damaged ({reason}); save the graph again") from None
    if isinstance(found, dict):
        found = Data.from_dict(found)
    if not isinstance(found, Data):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a graph; save a PyG Data of tensors")
    for name in ("x", "edge_index"):
        if not isinstance(found.get(name), Tensor):
            raise ValueError(f"{path}: the graph has no {name}, only {quoted(found.keys())}; add it and save again")
    return found


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
) -> tuple[Data, list[str], list[str], list[str]]:
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

    Returns:
        The graph, with labels as numbers (-1 where there is none) and a mask for each split that occurs; then the names
        of classes, features and nodes.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If the tables do not make a graph; the message names the row.
    """
    table = read_table(nodes)
    require_column(table, node, nodes)
    names = [name.strip() for name in table[node]]
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
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
    columns = [parse_numbers(table[column], column, nodes, role="a feature") for column in chosen]
    for column, values in zip(chosen, columns, strict=True):
        if np.isnan(values).any():
            row = int(np.isnan(values).argmax())
            raise ValueError(
                f"{nodes}, row {row + 1}, column {column!r}: {table[column][row]!r} is no finite number; "
                "fill it in, or leave out the column or the node"
            )
    edge_index, edge_attr = _read_edges(edges, row_of, nodes, undirected)
    y, classes = _read_labels(table, label, nodes, classes)
    graph = Data(x=torch.from_numpy(np.stack(columns, 1)).float(), edge_index=edge_index, edge_attr=edge_attr, y=y)
    for part, mask in _read_splits(table, split, nodes).items():
        graph[f"{part}_mask"] = mask
    return graph, classes, chosen, names


def _read_edges(path: str, row_of: dict[str, int], nodes: str, undirected: bool) -> tuple[Tensor, Tensor | None]:
    table = read_table(path)
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
    columns = []
    for column in table.columns[2:]:
        values = parse_numbers(table[column], column, path, role="a feature of edges")
        if np.isnan(values).any():
            row = int(np.isnan(values).argmax())
            raise ValueError(f"{path}, row {row + 1}, column {column!r}: {table[column][row]!r} is no finite number")
        columns.append(values)
    edge_attr = torch.from_numpy(np.stack(columns, 1)).float() if columns else None
    if undirected and edge_attr is not None:
        edge_index, edge_attr = to_undirected(edge_index, edge_attr, num_nodes=len(row_of), reduce="mean")
    elif undirected:
        edge_index = to_undirected(edge_index, num_nodes=len(row_of))
    return edge_index, edge_attr


def _read_labels(table: pd.DataFrame, label: str, source: str, classes: list[str] | None) -> tuple[Tensor, list[str]]:
    if label not in table.columns:
        return torch.full((len(table),), -1), classes or []
    cells = ["" if (cell := text.strip()) in MISSING else cell for text in table[label]]
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
