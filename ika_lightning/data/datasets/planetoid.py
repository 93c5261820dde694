"""The citation graphs Cora, CiteSeer and PubMed, from the raw files of Planetoid (Yang et al., 2016)."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ika_lightning.data.datasets.kinds import GraphSet
from ika_lightning.data.download import RemoteFile
from ika_lightning.lazy import torch_geometric as pyg

__all__ = ["PARTS", "planetoid"]

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")

_URL = "https://github.com/kimiyoung/planetoid/raw/master/data/"


def planetoid(name: str, *, title: str, figure: str, known: tuple[tuple[int | None, str | None], ...]) -> GraphSet:
    """A citation graph whose files are ``ind.<name>.<part>``.

    Args:
        name: Its name.
        title: What it is.
        figure: The published figure.
        known: Size in bytes and SHA-256 of each of :data:`PARTS`; None where they are not known.
    """
    names = [f"ind.{name}.{part}" for part in PARTS]
    return GraphSet(
        name=name,
        title=title,
        licence="unclear",
        figure=figure,
        files={
            part: RemoteFile(f"graph/{name}/raw/{file}", _URL + file, size, sha256)
            for part, file, (size, sha256) in zip(PARTS, names, known, strict=True)
        },
        read=read_planetoid,
        scaling="rows",
    )


def read_planetoid(files: Mapping[str, Path]) -> pyg.data.Data:
    """Read a citation graph with its public split.

    The same as PyG's ``Planetoid``, down to the order of edges, but for two things. Its files are pickles, which can
    run any code; here nothing but arrays, lists and numbers is taken from them. And the nodes of CiteSeer of which the
    files tell nothing have no label (-1) instead of the first.

    Args:
        files: The file of each part.

    Returns:
        ``x`` (n, f) as the files have it, ``edge_index`` (2, E) with both directions of each edge, ``y`` (n,), and
        ``train_mask``, ``val_mask`` (500 nodes) and ``test_mask`` (1,000).

    Raises:
        ValueError: If a file is damaged, or holds more than arrays.
    """
    test_file = files["test.index"]
    x, tx, allx, y, ty, ally, links = (_unpickle(files[part]) for part in PARTS[:-1])
    try:
        test = torch.tensor([int(line) for line in test_file.read_bytes().split()])
        tx, allx, ty, ally = (torch.as_tensor(part) for part in (tx, allx, ty, ally))
        return _assemble(tx, allx, ty, ally, links, test, len(y), len(x))
    except (ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"the files in {test_file.parent} do not make a graph ({error}); remove them to fetch them again"
        ) from None


def _assemble(
    tx: Tensor,
    allx: Tensor,
    ty: Tensor,
    ally: Tensor,
    links: dict[int, list[int]],
    test: Tensor,
    labelled: int,
    rows: int,
) -> pyg.data.Data:
    first, count = int(test.min()), int(test.max()) + 1
    if labelled != rows or not first == len(allx) == len(ally) or not len(tx) == len(ty) == len(test):
        raise ValueError(f"{len(allx)} and {len(tx)} rows, {len(ally)} and {len(ty)} labels, {len(test)} test nodes")
    x, label = torch.zeros(count, allx.size(1)), torch.full((count,), -1)
    # Test rows stand in the order of the test file; CiteSeer's file leaves out nodes without edges.
    x[:first], x[test] = allx.float(), tx.float()
    label[:first], label[test] = ally.argmax(1), ty.argmax(1)
    pairs = torch.tensor([(node, other) for node, others in links.items() for other in others]).mT
    edge_index = pyg.utils.coalesce(pyg.utils.remove_self_loops(pairs)[0], num_nodes=count, sort_by_row=False)
    if edge_index.max() >= count:
        raise ValueError(f"an edge names node {int(edge_index.max())} of {count}")
    number = torch.arange(count)
    return pyg.data.Data(
        x=x,
        edge_index=edge_index,
        y=label,
        train_mask=number < labelled,
        val_mask=(number >= labelled) & (number < labelled + 500),
        test_mask=torch.isin(number, test),
    )


class _Sparse:
    """What a pickled ``scipy.sparse.csr_matrix`` says of itself."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]

    def dense(self) -> np.ndarray:
        dense = np.zeros(self._shape, dtype=np.float32)
        rows = np.repeat(np.arange(self._shape[0]), np.diff(self.indptr))
        np.add.at(dense, (rows, self.indices), self.data)
        return dense


# What the pickles may ask for: arrays, sparse matrices and lists. Nothing here runs code.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("scipy.sparse.csr", "csr_matrix"): _Sparse,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,  # Python 2's name
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]


def _unpickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            found = _ArrayUnpickler(file, encoding="latin1").load()
        return found.dense() if isinstance(found, _Sparse) else found
    except Exception as error:  # a damaged pickle raises anything
        raise ValueError(
            f"{path} is no part of Planetoid ({error}): it is damaged or unsafe; remove it to fetch it again"
        ) from None
