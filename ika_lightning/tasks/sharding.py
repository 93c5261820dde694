"""Training whose gradients and optimizer are cut into a share for each process."""

import inspect
import warnings

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from typing_extensions import override

__all__ = ["FullyShardedStrategy"]


class FullyShardedStrategy(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) for the tasks of this package.

    The network is one unit: between updates each process keeps its share of weights, gradients and the optimizer's
    state; for a step the weights are gathered, and they stay until its gradients are scattered. On several machines,
    shares are of a machine's processes, and the machines have replicas. A checkpoint is one whole file, which
    is evaluated without it; a training goes on from it with it.

    Lightning's ``FSDPStrategy`` would cut at any layer, gathers within evaluation as well, where processes search for
    translations of different length and would wait for one another forever, and can't clip the norm of gradients.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> Trainer(accelerator="cpu", strategy=FullyShardedStrategy(), logger=False).strategy.num_nodes
        1
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    @override
    def setup(self, trainer: Trainer) -> None:
        assert self.lightning_module is not None
        net = self.lightning_module.net
        assert isinstance(net, nn.Module)
        net.to(self.root_device)
        fully_shard(net, mesh=self.device_mesh)
        for method in ("hidden", "start", "decode"):  # by which translation calls it, besides forward
            if inspect.ismethod(getattr(net, method, None)):
                register_fsdp_forward_method(net, method)
        # it warns of outputs that are views, lest someone should change them in place
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        super().setup(trainer)
