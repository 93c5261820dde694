"""What may attend to what: read once, where a call comes in, and passed on as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys each query may attend to, and what is added to the logarithm of a weight.

    :meth:`of` reads the arguments of :func:`torch.nn.functional.scaled_dot_product_attention`, :meth:`of_layer` those
    of :class:`torch.nn.MultiheadAttention`. Parts that are None forbid nothing and add nothing.

    Args:
        keys: Keys that may be attended to, the same for all queries; boolean, True = may attend.
        key_bias: Added to the logarithm of all weights of a key; finite.
        pairs: Pairs of a query and a key that may attend; boolean, True = may attend.
        pair_bias: Added to the logarithm of the weight of a pair; finite.
        causal: Query ``i`` attends to keys ``0..i`` only.

    Shapes:
        keys and key_bias broadcastable to (b, h, 1, m); pairs and pair_bias to (b, h, n, m).

    Example:
        >>> mask = Mask.of(torch.tensor([[True, False, True]]), is_causal=True)
        >>> mask.allowed(2, 3)
        tensor([[ True, False, False],
                [ True, False, False]])
    """

    keys: Tensor | None = None
    key_bias: Tensor | None = None
    pairs: Tensor | None = None
    pair_bias: Tensor | None = None
    causal: bool = False

    @classmethod
    def of(cls, attn_mask: Tensor | None, is_causal: bool = False) -> Mask:
        """Read a mask in which True means *may attend*, or whose numbers are added to the logarithm of the weights.

        A mask of one row is one for all queries.

        Raises:
            TypeError: If the mask is neither boolean nor floating.

        Example:
            >>> mask = Mask.of(torch.tensor([[0.0, -torch.inf]]))
            >>> mask.keys, mask.key_bias
            (tensor([[ True, False]]), tensor([[0., 0.]]))
        """
        if attn_mask is None:
            return cls(causal=is_causal)
        _check_dtype("attn_mask", attn_mask, "True = may attend")
        if attn_mask.dim() < 2:
            attn_mask = attn_mask.view(1, -1)
        allowed, bias = _split(attn_mask)
        if attn_mask.size(-2) == 1:
            return cls(keys=allowed, key_bias=bias, causal=is_causal)
        return cls(pairs=allowed, pair_bias=bias, causal=is_causal)

    @classmethod
    def of_layer(
        cls, key_padding_mask: Tensor | None, attn_mask: Tensor | None, is_causal: bool, b: int, h: int, n: int, m: int
    ) -> Mask:
        """Read the masks of :class:`torch.nn.MultiheadAttention`, in which True means *ignore*.

        Args:
            key_padding_mask: Keys to ignore, (b, m), or what is added to their log-weights.
            attn_mask: Pairs to ignore, (n, m) or (b * h, n, m), or what is added to their log-weights.
            is_causal: Ignore keys after the query's own position.
            b: Number of sequences.
            h: Number of heads.
            n: Number of queries.
            m: Number of keys.

        Raises:
            TypeError: If a mask is neither boolean nor floating.
            ValueError: If one has another shape.

        Example:
            >>> Mask.of_layer(torch.tensor([[False, True]]), None, False, b=1, h=3, n=5, m=2).keys
            tensor([[[[ True, False]]]])
        """
        keys = key_bias = pairs = pair_bias = None
        if key_padding_mask is not None:
            _check_dtype("key_padding_mask", key_padding_mask, "True = ignore")
            if key_padding_mask.shape != (b, m):
                raise ValueError(
                    f"key_padding_mask must have shape (batch, keys) = {(b, m)}, got {tuple(key_padding_mask.shape)}"
                )
            keys, key_bias = _split_ignored(key_padding_mask[:, None, None])
        if attn_mask is not None:
            _check_dtype("attn_mask", attn_mask, "True = ignore")
            if attn_mask.shape not in ((n, m), (b * h, n, m)):
                raise ValueError(
                    f"attn_mask must have shape (queries, keys) = {(n, m)} or (batch * heads, queries, keys) = "
                    f"{(b * h, n, m)}, got {tuple(attn_mask.shape)}"
                )
            pairs, pair_bias = _split_ignored(attn_mask.view(b, h, n, m) if attn_mask.dim() == 3 else attn_mask)
        return cls(keys, key_bias, pairs, pair_bias, is_causal)

    @classmethod
    def causal_after(cls, n: int, m: int, device: torch.device) -> Mask:
        """Let the last n of m positions attend to themselves and to those before.

        ``causal`` counts queries and keys from the same first position, and so serves a sequence from its beginning.

        Example:
            >>> Mask.causal_after(2, 4, torch.device("cpu")).pairs
            tensor([[ True,  True,  True, False],
                    [ True,  True,  True,  True]])
            >>> [Mask.causal_after(n, 4, torch.device("cpu")).causal for n in (4, 1)]
            [True, False]
        """
        if n == m:
            return cls(causal=True)
        return cls() if n == 1 else cls(pairs=torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n))

    @property
    def differs_by_query(self) -> bool:
        """Whether a query may see other keys than another, so that no mean over keys can be told to all of them."""
        return self.causal or self.pairs is not None or self.pair_bias is not None

    def of_keys(self) -> Mask:
        """Return what of the mask concerns keys alone."""
        return Mask(self.keys, self.key_bias)

    def with_keys(self, of_keys: Mask) -> Mask:
        """Return the mask with another's part that concerns keys alone, in the place of its own."""
        return replace(self, keys=of_keys.keys, key_bias=of_keys.key_bias)

    def allowed(self, n: int, m: int, device: torch.device | None = None) -> Tensor | None:
        """Return which keys may be attended to, (..., 1 or n, m); None if all may."""
        allowed = self.keys
        if self.pairs is not None:
            allowed = self.pairs if allowed is None else allowed & self.pairs
        if self.causal:
            device = device if allowed is None else allowed.device
            causal = torch.ones(n, m, dtype=torch.bool, device=device).tril()
            allowed = causal if allowed is None else causal & allowed
        return allowed

    def attended(self, n: int, m: int, device: torch.device | None = None) -> Tensor | None:
        """Return which keys some query may attend to, (..., 1, m); None if all.

        Example:
            >>> Mask(causal=True).attended(2, 3)
            tensor([[ True,  True, False]])
        """
        if self.pairs is not None:
            allowed = self.allowed(n, m, device)
            return None if allowed is None else allowed.any(-2, keepdim=True)
        if not self.causal or m <= n:
            return self.keys
        seen = torch.arange(m, device=device).unsqueeze(0) < n
        return seen if self.keys is None else self.keys & seen

    def check(self, n: int, m: int) -> None:
        """Refuse a mask that does not broadcast to n queries and m keys.

        Raises:
            ValueError: If it does not.
        """
        for rows, parts in ((1, (self.keys, self.key_bias)), (n, (self.pairs, self.pair_bias))):
            for part in parts:
                if part is not None and (part.size(-1) not in (1, m) or part.size(-2) not in (1, rows)):
                    raise ValueError(
                        f"a mask must broadcast to (..., queries, keys) = (..., {n}, {m}), got shape "
                        f"{tuple(part.shape)}; it has an entry for each key, those that were encoded before included"
                    )

    def select(self, index: Tensor) -> Mask:
        """Return the mask of the sequences ``index``."""

        def chosen(part: Tensor | None) -> Tensor | None:
            return part if part is None or part.dim() < 4 or part.size(0) == 1 else part.index_select(0, index)

        return replace(
            self,
            keys=chosen(self.keys),
            key_bias=chosen(self.key_bias),
            pairs=chosen(self.pairs),
            pair_bias=chosen(self.pair_bias),
        )


def _split(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Split a mask, True = may attend or floating, into what it allows and what it adds."""
    if mask.dtype == torch.bool:
        return mask, None
    allowed = mask != -math.inf
    return allowed, mask.masked_fill(~allowed, 0.0)


def _split_ignored(mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return _split(~mask if mask.dtype == torch.bool else mask)


def _check_dtype(name: str, mask: Tensor, meaning: str) -> None:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(f"{name} must be boolean ({meaning}) or floating (added to log-weights), got {mask.dtype}")
