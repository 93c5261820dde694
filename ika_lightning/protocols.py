"""What a model, a batch or a data module may offer beyond what Lightning asks for.

All of it is optional, and nothing has to be inherited: an object offers what it has the methods of. Callbacks and
reports ask by ``isinstance``, and do without where there is nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

__all__ = [
    "CompletesPredictions",
    "CountsUnits",
    "DescribesAttention",
    "DrawsResults",
    "Exports",
    "Figures",
    "HasFingerprints",
    "NamesAttention",
    "Program",
    "RunsExample",
    "Tables",
    "TellsTables",
    "WritesPredictions",
]

#: Pictures by the name that they are shown under; a picture is drawn when it is called.
Figures = Mapping[str, Callable[[], "Figure"]]

#: Tables by their titles, each a header and rows.
Tables = Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]


@runtime_checkable
class DrawsResults(Protocol):
    """A model that can draw what it answered.

    Example:
        >>> from ika_lightning.tasks import Regression
        >>> isinstance(Regression(), DrawsResults), isinstance(3, DrawsResults)
        (True, False)
    """

    def pictures(self) -> Figures:
        """Return what can be drawn of the last validation."""


@runtime_checkable
class TellsTables(Protocol):
    """A model that can tell in words what it answered.

    Example:
        >>> from ika_lightning.tasks import Translation
        >>> isinstance(Translation(), TellsTables)
        True
    """

    def tables(self) -> Tables:
        """Return what can be told of the last validation."""


@runtime_checkable
class NamesAttention(Protocol):
    """A model that knows what its attention layers look at.

    Example:
        >>> from ika_lightning.tasks import TextClassification
        >>> isinstance(TextClassification(), NamesAttention)
        True
    """

    def attention_names(self, batch: Any, layer: str) -> tuple[list[list[str]], list[list[str]]] | None:
        """Name what attends and what is attended to.

        Args:
            batch: The batch that the layer saw.
            layer: Where in the model the layer is.

        Returns:
            Two lists, for queries and for keys, of the names of each sequence of the batch, without padding; or of the
            one graph. None where there are no names.
        """


@runtime_checkable
class DescribesAttention(Protocol):
    """A model that can say what its attention layers look at.

    Example:
        >>> from ika_lightning.tasks import Regression
        >>> isinstance(Regression(), DescribesAttention)
        True
    """

    def describe_attention(self, layer: str) -> tuple[str, str]:
        """Say in a few words what attends and what is attended to, in the plural, such as ``("tokens", "tokens")``.

        Args:
            layer: Where in the model the layer is.
        """


@runtime_checkable
class RunsExample(Protocol):
    """A model whose checkpoint holds examples: its attention can be watched without any data.

    Example:
        >>> from ika_lightning.tasks import Regression
        >>> isinstance(Regression(), RunsExample)
        True
    """

    def run_example(self) -> Any:
        """Answer for examples of its own."""


@dataclass(frozen=True)
class Program:
    """What a model computes when it is asked, ready to be traced, and all that a stranger has to know of it.

    Args:
        module: Called with the inputs by name; returns the outputs by name.
        example: Inputs of any content, whose dynamic axes have sizes of at least 2, no two of them the same.
        axes: The dynamic axes of inputs and outputs: their positions, and what they are called. One name is one size.
        meaning: What each input and output is, in a sentence. It and axes may tell of inputs that this model has not.
        encoding: How raw data becomes inputs, as strings, numbers, lists and dicts.
        note: What a user might miss in it; empty if nothing.
        most: The largest sizes of dynamic axes, by what they are called, where there is one.

    Example:
        >>> from torch import nn, ones
        >>> meaning = {"x": "numbers, three a row", "out": "their products with weights"}
        >>> program = Program(nn.Linear(3, 2), {"x": ones(5, 3)}, {"x": {0: "rows"}}, meaning, encoding={})
        >>> program.note, program.most
        ('', {})
    """

    module: nn.Module
    example: Mapping[str, Tensor]
    axes: Mapping[str, Mapping[int, str]]
    meaning: Mapping[str, str]
    encoding: Mapping[str, Any]
    note: str = ""
    most: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Exports(Protocol):
    """A model that can be used without this package.

    Example:
        >>> from ika_lightning.tasks import NodeClassification
        >>> isinstance(NodeClassification(), Exports)
        True
    """

    def export_program(self, data: Any) -> Program:
        """Return what the model computes in evaluation, on whatever device it is.

        Args:
            data: The data module, which has learned what the checkpoint says.
        """


@runtime_checkable
class CountsUnits(Protocol):
    """A batch that knows what it holds.

    Example:
        >>> from torch import tensor
        >>> from ika_lightning.data import TextBatch
        >>> isinstance(TextBatch(tensor([[5, 6]]), tensor([1]), tensor([0])), CountsUnits)
        True
    """

    @property
    def counts(self) -> Mapping[str, Any]:
        """How many of each unit there are, such as ``{"texts": 64, "tokens": 812}``: numbers or scalar tensors."""


@runtime_checkable
class CompletesPredictions(Protocol):
    """A model that knows more of its predictions than it returns for each batch, such as intervals around them.

    Example:
        >>> from ika_lightning.tasks import Regression
        >>> isinstance(Regression(), CompletesPredictions)
        True
    """

    def complete_predictions(self, predictions: Any) -> Any:
        """Return what is written: of all predictions, one after another, a tensor or a list."""


@runtime_checkable
class WritesPredictions(Protocol):
    """A data module that knows how predictions for its rows are written.

    Example:
        >>> from ika_lightning.data import RegressionData
        >>> isinstance(RegressionData(name="co2"), WritesPredictions)
        True
    """

    def write_predictions(self, path: str | Path, predictions: Any) -> None:
        """Write the predictions of all batches, one after another: a tensor, a list, or what the model made of it."""


@runtime_checkable
class HasFingerprints(Protocol):
    """A data module that can tell whether another has read the same.

    Example:
        >>> from ika_lightning.data import RegressionData
        >>> isinstance(RegressionData(name="co2"), HasFingerprints)
        True
    """

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """A SHA-256 of each part that was read."""
