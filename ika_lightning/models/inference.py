"""What networks compute when they are asked, from their inputs to their answers, by name: what leaves this package."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ika_lightning.models.encoder_decoder import EncoderDecoder
from ika_lightning.models.graph import GraphNetwork

__all__ = ["ContextRegressor", "NextTokens", "NodeProbabilities", "TextProbabilities"]


class TextProbabilities(nn.Module):
    """Tell how probable each class of a text is.

    Args:
        net: A network that scores the classes.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> from ika_lightning.models import TextClassifier
        >>> net = TextClassifier(11, 3, width=8, depth=1, num_heads=2, attention=IKAN)
        >>> TextProbabilities(net)(torch.tensor([[4, 7, 2, 9], [5, 1, 0, 0]]))["probabilities"].shape
        torch.Size([2, 3])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return ``logits`` and ``probabilities`` (b, c) of texts (b, n), padded at their ends."""
        return _probabilities(self.net(tokens))


class NodeProbabilities(nn.Module):
    """Tell how probable each class of each node of a graph is.

    Args:
        net: A network that scores the classes.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import KernelGATConv
        >>> answers = NodeProbabilities(GraphNetwork(5, 3, KernelGATConv))(torch.randn(7, 5), torch.tensor([[0], [1]]))
        >>> answers["logits"].shape
        torch.Size([7, 3])
    """

    def __init__(self, net: GraphNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``logits`` and ``probabilities`` (n, c) of nodes (n, f) with edges (2, E), of features (E, k)."""
        dtype = next(self.net.parameters()).dtype
        return _probabilities(self.net(x.to(dtype), edge_index, None if edge_attr is None else edge_attr.to(dtype)))


class NextTokens(nn.Module):
    """Tell how probable each token is after each beginning of a translation.

    Args:
        net: A network that scores the next tokens.

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKAN
        >>> net = EncoderDecoder(11, 13, width=8, depth=1, num_heads=2, attention=IKAN)
        >>> source, target = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[2, 4], [2, 9]])
        >>> NextTokens(net)(source, target)["log_probabilities"].shape
        torch.Size([2, 2, 13])
    """

    def __init__(self, net: EncoderDecoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return ``log_probabilities`` (b, n, V) after each token of target (b, n), given source (b, m)."""
        return {"log_probabilities": self.net(source, target).log_softmax(-1)}


class ContextRegressor(nn.Module):
    """Predict a target in its own unit, from a context that is part of the module, and say how sure that is.

    Args:
        net: A network, or several, that answer for rows, given others and their targets.
        context: Rows to look at.
        targets: What became of them, standardised; None for a network that isn't told.
        read: What their outputs say: means (r,), and standard deviations, or None where they are not known.
        mean: Mean of the target.
        std: Its standard deviation.
        radius: How far an interval goes to each side; None for no interval.
        widens: Whether that is in standard deviations of each row; else in those of the target.

    Shapes:
        context (c, num_features); targets (c,).

    Example:
        >>> import torch
        >>> from ika_lightning.attention import IKANDirect
        >>> from ika_lightning.models import RowTransformer
        >>> net = RowTransformer(num_features=3, width=8, depth=1, num_heads=2, attention=IKANDirect)
        >>> read = lambda outputs: (outputs, None)
        >>> predict = ContextRegressor(net, torch.randn(7, 3), None, read, mean=1e6, std=10.0, radius=2.0)
        >>> answers = predict(torch.randn(5, 3))
        >>> {name: (len(numbers), numbers.dtype) for name, numbers in answers.items()}["upper"]
        (5, torch.float64)
    """

    context: Tensor
    targets: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        context: Tensor,
        targets: Tensor | None,
        read: Callable[[Tensor], tuple[Tensor, Tensor | None]],
        mean: float,
        std: float,
        radius: float | None = None,
        widens: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("context", context)
        self.register_buffer("targets", targets)
        self.read = read
        self.mean, self.std = mean, std
        self.radius, self.widens = radius, widens

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return the ``prediction`` (r,) for rows (r, num_features), in float64: a large mean must not cost digits.

        With it ``std``, ``lower`` and ``upper``, as far as they are known.
        """
        mean, std = self.read(self.net(self.context, features.to(self.context.dtype), self.targets))
        prediction = self.mean + self.std * mean.double()
        answers = {"prediction": prediction}
        if std is not None:
            answers["std"] = self.std * std.double()
        if self.radius is not None:
            half = self.radius * (answers["std"] if self.widens else self.std)
            answers |= {"lower": prediction - half, "upper": prediction + half}
        return answers


def _probabilities(logits: Tensor) -> dict[str, Tensor]:
    return {"logits": logits, "probabilities": logits.softmax(-1)}
