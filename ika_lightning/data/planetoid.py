"""The citation graphs Cora, CiteSeer and PubMed, from the raw files of Planetoid (Yang et al., 2016)."""

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import coalesce, remove_self_loops

from ika_lightning.data.download import RemoteFile, fetch

__all__ = ["PLANETOID", "read_planetoid"]

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")

# Size in bytes and SHA-256 of each part.
_KNOWN = {
    "cora": (
        (22_119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
        (148_025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
        (257_305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
        (4_054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
        (28_135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
        (47_959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
        (59_847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
        (5_000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
    ),
    "citeseer": (
        (31_087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"),
        (260_321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"),
        (595_021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"),
        (3_014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"),
        (24_135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"),
        (55_623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"),
        (61_987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"),
        (5_000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"),
    ),
    "pubmed": (
        (23_172, "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33"),
        (405_505, "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d"),
        None,  # never seen whole here: its shape and types are checked as it is read
        (854, "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3"),
        (12_135, "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd"),
        (224_739, "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e"),
        (471_808, "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9"),
        (6_000, "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5"),
    ),
}

PLANETOID = tuple(_KNOWN)


def _file(name: str, number: int) -> RemoteFile:
    file = f"ind.{name}.{PARTS[number]}"
    size, sha256 = _KNOWN[name][number] or (None, None)
    return RemoteFile(
        path=f"graph/{name}/raw/{file}",
        url=f"https://github.com/kimiyoung/planetoid/raw/master/data/{file}",
        size=size,
        sha256=sha256,
    )


def read_planetoid(name: str, root: str | None = None) -> Data:
    """Read a citation graph with its public split, after downloading what is missing.

    The same as PyG's ``Planetoid``, down to the order of edges, but for two things. Its files are pickles, which can
    run any code; here nothing but arrays, lists and numbers is taken from them. And the nodes of CiteSeer of which the
    files tell nothing have no label (-1) instead of the first.

    Args:
        name: One of :data:`PLANETOID`.
        root: See :func:`ika_lightning.data.download.data_root`; files are looked for under ``graph/<name>/raw``.

    Returns:
        ``x`` (n, f) as the files have it, ``edge_index`` (2, E) with both directions of each edge, ``y`` (n,), and
        ``train_mask``, ``val_mask`` (500 nodes) and ``test_mask`` (1,000).

    Raises:
        FileNotFoundError: If a file is not there and cannot be downloaded.
        ValueError: If a file is damaged, or holds more than arrays.
    """
    files = [fetch(_file(name, number), root) for number in range(len(PARTS))]
    *pickles, test_file = files
    x, tx, allx, y, ty, ally, links = (_unpickle(file) for file in pickles)
    try:
        test = torch.tensor([int(line) for line in test_file.read_text().split()])
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
) -> Data:
    first, count = int(test.min()), int(test.max()) + 1
    if labelled != rows or not first == len(allx) == len(ally) or not len(tx) == len(ty) == len(test):
        raise ValueError(f"{len(allx)} and {len(tx)} rows, {len(ally)} and {len(ty)} labels, {len(test)} test nodes")
    x, label = torch.zeros(count, allx.size(1)), torch.full((count,), -1)
    # Test rows stand in the order of the test file; CiteSeer's file leaves out nodes without edges.
    x[:first], x[test] = allx.float(), tx.float()
    label[:first], label[test] = ally.argmax(1), ty.argmax(1)
    pairs = torch.tensor([(node, other) for node, others in links.items() for other in others]).mT
    edge_index = coalesce(remove_self_loops(pairs)[0], num_nodes=count, sort_by_row=False)
    if edge_index.max() >= count:
        raise ValueError(f"an edge names node {int(edge_index.max())} of {count}")
    number = torch.arange(count)
    return Data(
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
