"""How long KernelGATConv takes, and how much memory, as ratios to GATConv in the same run.

    python benchmarks/graph_speed.py [--nodes 100000] [--edges 1000000] [--repeats 5] [--samples 32] [--root FOLDER]

Convolutions have an exact part beside the sampled one, as by default; "sampled" has none, as in the paper.

Two cases. "cora": an epoch of training on the whole graph as in ``configs/node_classification/cora.yaml``: two layers,
8 heads of 8 channels, dropout and Adam included; where the data set is not on this computer, a drawn graph of its size.
"large": forward and backward of one layer of 8 heads of 8 channels on a drawn graph.

Repeats are interleaved over the convolutions; medians are printed, and the median of the ratios. Peak memory is that of
a process of its own for each convolution, its libraries included.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GATConv

from ika_lightning.attention import KernelGATConv, attention_kl
from ika_lightning.data import NodeClassificationData
from ika_lightning.data.node_classification import NodeBatch
from ika_lightning.models import ConvFactory, GraphNetwork


def convolutions(samples: int) -> dict[str, ConvFactory]:
    ours = partial(KernelGATConv, num_samples=samples)
    return {
        "GATConv": GATConv,
        "direct": ours,
        "direct, sampled": partial(ours, init="rbf"),
        "direct, stationary": partial(ours, stationary=True),
        "implicit": partial(ours, spectrum="implicit"),
        "copula": partial(ours, spectrum="copula"),
    }


def drawn(nodes: int, edges: int, width: int, classes: int = 7) -> NodeBatch:
    generator = torch.Generator().manual_seed(0)
    return NodeBatch(
        x=torch.randn(nodes, width, generator=generator),
        edge_index=torch.randint(nodes, (2, edges), generator=generator),
        edge_attr=None,
        y=torch.randint(classes, (nodes,), generator=generator),
        asked=torch.arange(min(nodes, 140)),
    )


def cora(root: str | None) -> NodeBatch:
    if root is None:
        return drawn(2_708, 10_556, 1_433)
    data = NodeClassificationData("cora", root=root)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def epoch(conv: ConvFactory, graph: NodeBatch) -> Callable[[], None]:
    """Return a training step of the network of the configurations."""
    torch.manual_seed(0)
    net = GraphNetwork(graph.x.size(1), int(graph.y.max()) + 1, partial(conv, dropout=0.6), dropout=0.6)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005, weight_decay=5e-4)

    def step() -> None:
        scores = net(graph.x, graph.edge_index)[graph.asked]
        loss = F.cross_entropy(scores, graph.y[graph.asked]) + 0.01 * attention_kl(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def layer(conv: ConvFactory, graph: NodeBatch) -> Callable[[], None]:
    """Return forward and backward of a layer; the gradient goes on to its input, as within a network."""
    torch.manual_seed(0)
    module: nn.Module = conv(graph.x.size(1), 8, heads=8)  # type: ignore[call-arg]
    x = graph.x.clone().requires_grad_()

    def step() -> None:
        module.zero_grad()
        x.grad = None
        module(x, graph.edge_index).square().mean().backward()

    return step


def interleaved(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, np.ndarray]:
    """Return milliseconds of every repeat."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            # the first ones warm caches and allocator up
            if repeat >= 2:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}


def peak_memory(name: str, arguments: argparse.Namespace) -> float:
    """Return the most MiB that a process held which did nothing but forward and backward of a layer.

    It has to be started while this process is small: Linux counts what a process held before it became another.
    """
    sizes = ["--nodes", str(arguments.nodes), "--edges", str(arguments.edges), "--samples", str(arguments.samples)]
    child = subprocess.run(
        [sys.executable, __file__, "--peak", name, *sizes], check=True, capture_output=True, text=True, env=os.environ
    )
    return float(child.stdout.split()[-1])


def print_peak(arguments: argparse.Namespace) -> None:
    graph = drawn(arguments.nodes, arguments.edges, 64)
    layer(convolutions(arguments.samples)[arguments.peak], graph)()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # bytes there, kilobytes elsewhere
    print(most / (2**20 if sys.platform == "darwin" else 2**10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--root", default=os.environ.get("IKA_DATA"), help="folder of the benchmark data")
    # what a process of its own is to measure
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak is not None:
        print_peak(arguments)
        return
    convs, repeats = convolutions(arguments.samples), arguments.repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, M = {arguments.samples}")
    print(f"{'case':<8}{'convolution':<20}{'ms':>9}{'10-90 %':>18}{'x GATConv':>11}{'peak MiB':>10}")
    peaks = {name: peak_memory(name, arguments) for name in convs}
    large = drawn(arguments.nodes, arguments.edges, 64)
    for case, steps, count in (
        ("cora", {name: epoch(conv, cora(arguments.root)) for name, conv in convs.items()}, 4 * repeats),
        ("large", {name: layer(conv, large) for name, conv in convs.items()}, repeats),
    ):
        times = interleaved(steps, count)
        for name, values in times.items():
            low, middle, high = np.percentile(values, [10, 50, 90])
            ratio = np.median(values / times["GATConv"])
            memory = f"{peaks[name]:>10.0f}" if case == "large" else ""
            print(f"{case:<8}{name:<20}{middle:>9.1f}{f'{low:.1f} - {high:.1f}':>18}{ratio:>11.2f}{memory}")


if __name__ == "__main__":
    main()
