"""What of a network the compiler is given at once."""

from __future__ import annotations

from torch import nn

from ika_lightning.models.encoder import EncoderLayer
from ika_lightning.models.encoder_decoder import DecoderLayer


def compile_layers(net: nn.Module) -> None:
    """Compile a network with ``torch.compile``, in place, layer by layer; as a whole if it has no layers of ours.

    Layers of a kind share what is compiled, so the compiler takes as long as for one of each, however deep the network.

    Args:
        net: The network. The keys of its state dict stay what they are.

    Example:
        >>> from ika_lightning.attention import IKAN
        >>> from ika_lightning.models import Encoder
        >>> compile_layers(Encoder(width=8, depth=2, num_heads=2, attention=IKAN))
    """
    layers: list[nn.Module] = [each for each in net.modules() if isinstance(each, EncoderLayer | DecoderLayer)]
    for module in layers or [net]:
        module.compile()
