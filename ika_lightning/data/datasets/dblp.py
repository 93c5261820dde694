"""The citation graph DBLP of Bojchevski and Guennemann (2018)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ika_lightning.data.datasets.kinds import GraphSet
from ika_lightning.data.download import RemoteFile
from ika_lightning.lazy import torch_geometric as pyg


def _read(files: Mapping[str, Path]) -> pyg.data.Data:
    """Both matrices are in compressed rows. Of the archive no object is loaded, which could run code."""
    try:
        with np.load(files["graph"], allow_pickle=False) as arrays:
            count, width = (int(number) for number in arrays["attr_shape"])
            x = torch.zeros(count, width)
            rows = np.repeat(np.arange(count), np.diff(arrays["attr_indptr"]))
            x[rows, arrays["attr_indices"]] = torch.from_numpy(arrays["attr_data"]).float()
            source = np.repeat(np.arange(count), np.diff(arrays["adj_indptr"]))
            edges = torch.from_numpy(np.stack([source, arrays["adj_indices"]]).astype(np.int64))
            y = torch.from_numpy(arrays["labels"].astype(np.int64))
    except (ValueError, KeyError, IndexError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{files['graph']} is not the graph DBLP ({error}); remove it to fetch it again") from None
    return pyg.data.Data(
        x=x, edge_index=pyg.utils.to_undirected(pyg.utils.remove_self_loops(edges)[0], num_nodes=count), y=y
    )


DATASET = GraphSet(
    name="dblp",
    title="DBLP, citations between 17,716 papers of 4 fields",
    licence="unclear",
    files={
        "graph": RemoteFile(
            path="graph/dblp/dblp.npz",
            url="https://github.com/abojchevski/graph2gauss/raw/master/data/dblp.npz",
            size=None,
            sha256=None,
        )
    },
    read=_read,
    scaling="rows",
)
