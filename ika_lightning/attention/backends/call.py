"""What a backend is given, and what it must be able to say of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ika_lightning.attention.mask import Mask


@dataclass(frozen=True, eq=False)
class Call:
    r"""One call of :func:`~ika_lightning.attention.kernel_attention`, checked and in the precision of the computation.

    .. math::
        w_{ij} = e^{q_i \cdot k_j + \text{mag}_j} \bigl((1 - a + a\, \phi_i \cdot \psi_j)^2 + \text{floor}\bigr)

    Keys that no query may attend to are rows of zeros, their values too: zero weight times NaN would still be NaN.
    Whoever makes a call sees to it, by :meth:`without_unattended` or earlier.

    Args:
        query: :math:`q`; None, with the key, if there is no exponent.
        key: :math:`k`.
        query_features: :math:`\phi`; None, with those of the key, if there is no square (nor a floor).
        key_features: :math:`\psi`.
        value: What is averaged.
        log_magnitude: :math:`\text{mag}`; None if it is zero.
        mask: What may attend to what.
        dropout_p: Probability with which a weight is dropped.
        floor: Added to the square.
        need_weights: Whether the weights are asked for.
        share: :math:`a`; None if it is 1.
        product_dtype: Half precision that a backend may take for products of what came in it or was computed from it;
            None is the tensors' own.

    Shapes:
        query (..., n, d); key (..., m, d); query_features (..., n, R); key_features (..., m, R); value (..., m, e);
        log_magnitude (..., m); share (..., 1, 1). Leading axes broadcast.

    Example:
        >>> x = torch.zeros(2, 5, 3)
        >>> call = Call(x, x, None, None, x, None, Mask(), dropout_p=0.0, floor=1e-5, need_weights=False)
        >>> call.n, call.has_exponent, call.has_features, call.sums_over_keys
        (5, True, False, True)
    """

    query: Tensor | None
    key: Tensor | None
    query_features: Tensor | None
    key_features: Tensor | None
    value: Tensor
    log_magnitude: Tensor | None
    mask: Mask
    dropout_p: float
    floor: float
    need_weights: bool
    share: Tensor | None = None
    product_dtype: torch.dtype | None = None

    @property
    def has_exponent(self) -> bool:
        """Whether the weights have an exponential of a product."""
        return self.query is not None

    @property
    def has_features(self) -> bool:
        """Whether the weights have the square of a product of features."""
        return self.query_features is not None

    @property
    def device(self) -> torch.device:
        """Where the call is computed."""
        return self.value.device

    @property
    def n(self) -> int:
        """Number of queries."""
        rows = self.query_features if self.query is None else self.query
        assert rows is not None
        return rows.size(-2)

    @property
    def m(self) -> int:
        """Number of keys."""
        return self.value.size(-2)

    @property
    def num_features(self) -> int:
        """Number of features, R; 0 if there are none."""
        return 0 if self.query_features is None else self.query_features.size(-1)

    @property
    def exponent_width(self) -> int:
        """Width of what the exponent is a product of, d; 0 if there is none."""
        return 0 if self.query is None else self.query.size(-1)

    @property
    def lead(self) -> torch.Size:
        """The leading axes of the result, which are sequences and heads."""
        parts = (self.query, self.key, self.query_features, self.key_features, self.value)
        return torch.broadcast_shapes(*(part.shape[:-2] for part in parts if part is not None))

    @property
    def sums_over_keys(self) -> bool:
        """Whether all queries share a mask, besides causality, and nothing is asked for that needs single weights."""
        parts = (self.mask.pairs, self.mask.pair_bias)
        shared = all(part is None or part.size(-2) == 1 for part in parts)
        return shared and self.dropout_p == 0.0 and not self.need_weights

    @property
    def bias(self) -> Tensor | None:
        """What is added to the logarithm of a weight besides its products, (..., 1 or n, m); None if nothing is."""
        bias = None if self.log_magnitude is None else self.log_magnitude.unsqueeze(-2)
        for part in (self.mask.key_bias, self.mask.pair_bias):
            if part is not None:
                bias = part.to(self.value.dtype) if bias is None else bias + part.to(self.value.dtype)
        return bias

    def without_unattended(self) -> Call:
        """Zero keys, features and values of keys that no query may attend to.

        Raises:
            ValueError: If the mask does not fit.
        """
        self.mask.check(self.n, self.m)
        attended = self.mask.attended(self.n, self.m, self.device)
        if attended is None:
            return self
        rows = attended.mT
        return replace(
            self,
            key=None if self.key is None else self.key.masked_fill(~rows, 0.0),
            key_features=None if self.key_features is None else self.key_features.masked_fill(~rows, 0.0),
            value=self.value.masked_fill(~rows, 0.0),
        )

    def to(self, dtype: torch.dtype) -> Call:
        """Return the same call with all its parts of one dtype."""
        parts = ("query", "key", "query_features", "key_features", "value", "log_magnitude", "share")
        tensors = {name: getattr(self, name) for name in parts}
        return replace(self, **{name: part.to(dtype) for name, part in tensors.items() if part is not None})

    def with_atom_as_feature(self) -> Call:
        r"""Return the same call without a share: :math:`[a \phi, 1 - a] \cdot [\psi, 1]` is the same product."""
        if self.share is None or self.query_features is None or self.key_features is None:
            return self
        query = torch.cat(
            [self.share * self.query_features, (1.0 - self.share).expand_as(self.query_features[..., :1])], -1
        )
        key = torch.cat([self.key_features, torch.ones_like(self.key_features[..., :1])], -1)
        return replace(self, query_features=query, key_features=key, share=None)

    def allowed(self, causal: bool = True) -> Tensor | None:
        """Return which keys may be attended to, (..., 1 or n, m); None if all may. Optionally ignoring causality."""
        mask = self.mask if causal else Mask(keys=self.mask.keys, pairs=self.mask.pairs)
        return mask.allowed(self.n, self.m, self.device)


class Backend(Protocol):
    """A way to compute the operation.

    To add one, write such an object in a file of its own and name it in
    :data:`~ika_lightning.attention.backends.BACKENDS`, where ``backend="auto"``, tests and benchmarks find it.

    Example:
        >>> from ika_lightning.attention.backends import BACKENDS
        >>> x = torch.zeros(2, 5, 3)
        >>> call = Call(x, x, None, None, x, None, Mask(), dropout_p=0.0, floor=1e-5, need_weights=False)
        >>> [name for name, backend in BACKENDS.items() if backend.refuses(call) is None and name != "fused"]
        ['sdpa', 'dense', 'reference']
    """

    @property
    def name(self) -> str:
        """What ``backend=`` calls it."""
        ...

    def refuses(self, call: Call) -> str | None:
        """Say why a call cannot be served, as the end of a sentence that begins with the backend's name; else None."""
        ...

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        """Estimate the time forwards and backwards at the prices of a device, in multiply-adds of a large product.

        It is a sum of products of one price each, so that ``calibrate`` can find them from times.
        """
        ...

    def __call__(self, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return the averages (..., n, e) and, if the call asks for them, the weights (..., n, m)."""
        ...


#: Why backends that hold no n x m matrix refuse a call.
NEEDS_PAIRS = (
    "serves calls in which all queries share a mask, without dropout_p and return_weights (a layer's need_weights)"
)


def with_atom(product: Tensor, share: Tensor | None) -> Tensor:
    r"""Return :math:`1 - a + a \rho`, exactly 1 where a is 0 and :math:`\rho` where it is 1, or None.

    Example:
        >>> with_atom(torch.tensor([0.5]), torch.tensor([0.5]))
        tensor([0.7500])
    """
    return product if share is None else torch.lerp(product.new_ones(()), product, share)


def nonzero(x: Tensor) -> Tensor:
    """Replace zeros by ones: what a sum of weights is divided by where there is nothing to attend to."""
    return x.masked_fill(x == 0.0, 1.0)
