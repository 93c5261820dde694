r"""Attention between queries, keys and values that are already projected and split into heads.

Similarity x magnitude, where similarity has an exact part and a sampled one, either of which may be absent:

.. math::
    w_{ij} = \underbrace{e^{-s |q_i - k_j|^2 / 2 \sqrt d}}_{\text{exact}}
             \underbrace{\bigl((1 - a + a\, \rho(q_i, k_j))^2 + \text{floor}\bigr)}_{\text{sampled}}
             \underbrace{e^{\text{mag}(k_j)}}_{\text{magnitude}}

==================  ===========================  ==================  ==========================================
core                exact part                   sampled part        is
==================  ===========================  ==================  ==========================================
``Core(h, d)``                                                       scaled dot-product attention
``kernel``          an ``RBFKernel``                                 the Gaussian kernel, lengthscale learned
``kernel``          any other kernel                                 that kernel
``spectrum``                                     all of it, a = 1    the paper's estimator
both                an ``RBFKernel``             beside it           from one to the other
==================  ===========================  ==================  ==========================================

Read as a spectral density, the exact part convolves the sampled density with a Gaussian of known width, of which the
expectation is taken in closed form (a spectral mixture, `Wilson and Adams 2013 <https://arxiv.org/abs/1302.4245>`_,
with centres that are learned); 1 - a is an atom at frequency zero. So what is estimated from samples is only what the
Gaussian leaves, and its error is no larger than a.

For a in [0, 1] the kernel is positive semi-definite, as a product of such, so there training keeps it. What is learned
is any number, which is folded: a is that number from 0 to 1, falls from 1 to 2, and so on, a wave with a slope
everywhere. So a layer may start at an end, a = 0, where it is dot-product attention, and still learn; a sigmoid would
not reach the end, and a bound would hold there.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ika_lightning.attention.backends import Call, check_backend
from ika_lightning.attention.backends.call import with_atom
from ika_lightning.attention.backends.linear_state import LinearState
from ika_lightning.attention.backends.reference import log_weight_attention
from ika_lightning.attention.contract import call_feature_map, call_spectrum
from ika_lightning.attention.encoded import Cache, EncodedKeys, SummedKeys
from ika_lightning.attention.features import FeatureMap
from ika_lightning.attention.implicit import ImplicitSpectrum
from ika_lightning.attention.kernels import Kernel, RBFKernel, squared_distance
from ika_lightning.attention.magnitude import Exponent, Magnitude
from ika_lightning.attention.mask import Mask
from ika_lightning.attention.operation import FLOOR, attend, without_autocast
from ika_lightning.attention.regulariser import Regulariser
from ika_lightning.attention.saved import add_exact_part
from ika_lightning.attention.spectrum import DirectSpectrum, Spectrum, mean_key
from ika_lightning.attention.start import reset_children

_ALL = Mask()


class Core(nn.Module):
    r"""Similarity x magnitude; see the top of the file for the formula.

    A core does two things: :meth:`encode_keys`, all that needs no queries, and :meth:`attend`, the rest. Every way to
    attend is made of these two.

    A conditional spectrum is told the mean key, over keys that may be attended to, weighed as the mask weighs them. It
    is told nothing where that mean would leak: in a causal call, whose mean contains the future, and in any call with a
    mask that may differ between queries.

    Args:
        num_heads: Number of heads, h.
        head_dim: Width of a head, d.
        kernel: The exact part of similarity; None leaves it out, or, if there is no spectrum either, means that of
            scaled dot-product attention.
        spectrum: Where the feature map of the sampled part comes from; None leaves it out.
        p: Exponent of the norm in the magnitude, in [1, inf], or ``"learned"``. Scaled dot-product attention has 2.
        share: The a of each head at the start, which is then learned; None, where there is no kernel, fixes it at 1.
        backend: How it is computed, see :func:`~ika_lightning.attention.kernel_attention`.

    Shapes:
        query (b, h, n, d); key (b, h, m, d); value (b, h, m, e); the result (b, h, n, e) and, if asked for, weights
        (b, h, n, m), else None.

    Raises:
        ValueError: If an argument is out of its range, or parts are given that do not go together.
        TypeError: If the kernel or spectrum is none, or a spectrum returns something else than it must.

    Example:
        >>> from ika_lightning.attention import DirectSpectrum
        >>> core = Core(4, 8, kernel=RBFKernel(4, 8), spectrum=DirectSpectrum(4, 8, num_samples=5), share=0.5)
        >>> out, weights = core(*torch.randn(3, 2, 4, 7, 8).unbind())
        >>> out.shape, weights
        (torch.Size([2, 4, 7, 8]), None)
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        kernel: Kernel | None = None,
        spectrum: Spectrum | None = None,
        p: Exponent = 2.0,
        share: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if kernel is not None and spectrum is not None and not isinstance(kernel, RBFKernel):
            raise ValueError(f"the kernel beside a spectrum must be an RBFKernel, got {type(kernel).__name__}")
        if kernel is not None and not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a subclass of Kernel, got {type(kernel).__name__}; derive from it")
        if spectrum is not None and not isinstance(spectrum, Spectrum):
            raise TypeError(f"spectrum must be a subclass of Spectrum, got {type(spectrum).__name__}; derive from it")
        if (share is None) != (kernel is None or spectrum is None):
            raise ValueError(f"share is the part of a spectrum beside a kernel, and goes with both; got share={share}")
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be in [0, 1], got {share}")
        if kernel is None and spectrum is None and p != 2.0:
            raise ValueError(f"dot-product attention has p = 2, got p={p}; an RBFKernel has any")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.kernel = kernel
        self.spectrum = spectrum
        self.magnitude = Magnitude(num_heads, p)
        self.start_share = share
        self.free_share = None if share is None else nn.Parameter(torch.full((num_heads,), float(share)))
        self.backend = check_backend(backend)
        self.regulariser = Regulariser()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, in place."""
        reset_children(self)
        if self.free_share is not None and self.start_share is not None:
            nn.init.constant_(self.free_share, self.start_share)

    @property
    def share(self) -> Tensor | None:
        """The a of each head, (h,), in [0, 1]; None where it is fixed, at 1 with a spectrum alone, at 0 without any."""
        if self.free_share is None:
            return None
        place = self.free_share.remainder(2.0)
        return torch.where(place <= 1.0, place, 2.0 - place)

    @property
    def p(self) -> float | Tensor:
        """The exponent of the magnitude, a number, or that of each head, (h,), if it is learned."""
        return self.magnitude.p

    @property
    def kl(self) -> Tensor:
        """The regulariser of the last forward; zero before the first, and for a core without a spectrum."""
        if self.regulariser.value is not None:
            return self.regulariser.value
        some = next(self.parameters(), None)
        return torch.zeros(()) if some is None else torch.zeros((), device=some.device)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Mask = _ALL,
        *,
        dropout_p: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from queries to keys."""
        encoded = self.encode_keys(key, value, mask)
        return self.attend(query, encoded, mask, dropout_p=dropout_p, need_weights=need_weights)

    def encode_keys(
        self, key: Tensor, value: Tensor, mask: Mask = _ALL, feature_map: FeatureMap | None = None
    ) -> EncodedKeys:
        """Do all that needs no queries, and leave the regulariser in ``kl``.

        Args:
            key: Keys.
            value: Values.
            mask: What of it concerns keys alone is encoded with them; of the rest it only matters whether there is any.
            feature_map: That of earlier keys of the same sequences, instead of one from the spectrum.
        """
        if mask.keys is not None:
            mask.of_keys().check(1, key.size(-2))
            # before anything is made of it: zero weight times NaN would still be NaN
            absent = ~mask.keys.mT
            key, value = (x.masked_fill(absent, 0.0) for x in (key, value))
        if self.spectrum is None and self.kernel is None:
            return EncodedKeys(value, key, mask=mask.of_keys())
        with without_autocast(key.device):
            key = at_least_float32(key)
            features = None
            if self.spectrum is not None:
                if feature_map is None:
                    feature_map, value = self.sample(self.pool(key, mask), value)
                features = call_feature_map(feature_map, key)
            log_magnitude = self.key_log_magnitude(key)
        kept = None if self.kernel is None else key
        return EncodedKeys(value, kept, features, log_magnitude, mask.of_keys(), feature_map)

    def attend(
        self,
        query: Tensor,
        keys: EncodedKeys,
        mask: Mask = _ALL,
        *,
        dropout_p: float = 0.0,
        need_weights: bool = False,
        backend: str | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to keys that are encoded.

        Args:
            query: Queries.
            keys: What :meth:`encode_keys` returned, with its part of the mask.
            mask: The rest of the mask; its part that concerns keys alone is not looked at.
            dropout_p: Probability with which a weight is dropped.
            need_weights: Also return the weights.
            backend: How it is computed; the core's own if None.
        """
        mask = mask.with_keys(keys.mask)
        features = None
        with without_autocast(query.device):
            if self.kernel is not None and not isinstance(self.kernel, RBFKernel):
                return self._attend_by_formula(self.kernel, query, keys, mask, dropout_p, need_weights)
            if self.kernel is not None or self.spectrum is not None:
                query = at_least_float32(query)
            if keys.feature_map is not None:
                features = call_feature_map(keys.feature_map, query)
            scaled = None if keys.key is None else self.scaled_query(query)
        call = Call(
            scaled, keys.key, features, keys.features, keys.value, keys.log_magnitude,
            mask, dropout_p, FLOOR, need_weights, self._share_of(query),
        )  # fmt: skip
        if mask.pairs is not None or (mask.causal and keys.length > query.size(-2)):
            call = call.without_unattended()
        return attend(call, self.backend if backend is None else backend)

    def attend_fixed(self, query: Tensor, keys: EncodedKeys, *, dropout_p: float = 0.0) -> Tensor:
        """Attend to keys that many calls share, each with few queries: with ``"linear"``, each would sum all keys."""
        backend = "auto" if self.backend == "linear" else self.backend
        return self.attend(query, keys, dropout_p=dropout_p, backend=backend)[0]

    def decode(
        self, query: Tensor, key: Tensor, value: Tensor, cache: Cache | None = None, *, dropout_p: float = 0.0
    ) -> tuple[Tensor, Cache]:
        """Attend from the next positions of a sequence to them and to those before, causally.

        The feature map is drawn once, and keys are encoded once. With ``backend="linear"`` the cache is a sum of
        constant size, and no gradient passes from one call to the next.

        Args:
            query: Queries of the next positions.
            key: Their keys.
            value: Their values.
            cache: What the call for the positions before them returned; None at the beginning.
            dropout_p: Probability with which a weight is dropped.

        Returns:
            The result, and the cache for the positions after them.
        """
        feature_map = None if cache is None else cache.feature_map
        new = self.encode_keys(key, value, Mask(causal=True), feature_map)
        if self.backend == "linear":
            return self._decode_by_sums(query, new, cache, dropout_p)
        if isinstance(cache, SummedKeys):
            raise ValueError("this cache is one of a layer with backend='linear'; go on with that layer")
        keys = new if cache is None else cache.append(new)
        mask = Mask.causal_after(query.size(-2), keys.length, query.device)
        # several positions behind others have a mask each, which not every backend serves
        backend = self.backend if mask.pairs is None else "auto"
        return self.attend(query, keys, mask, dropout_p=dropout_p, backend=backend)[0], keys

    # --- Parts, which attention over the edges of a graph is made of, too ---------------------------------------------

    def pool(self, key: Tensor, mask: Mask) -> Tensor | None:
        """Return the mean key that the spectrum is told, (b, h, d); None if it asks for none, or it would leak."""
        wanted = self.spectrum is not None and self.spectrum.conditional
        return mean_key(key, mask.keys, mask.key_bias) if wanted and not mask.differs_by_query else None

    def sample(self, mean_key: Tensor | None, carrier: Tensor) -> tuple[FeatureMap, Tensor]:
        """Call the spectrum and keep its regulariser; return the map, and a tensor to be used in the carrier's place.

        See ``Regulariser.keep``.
        """
        assert self.spectrum is not None
        feature_map, kl = call_spectrum(self.spectrum, mean_key)
        return feature_map, self.regulariser.keep(kl, carrier, self.training)

    def scaled_query(self, query: Tensor) -> Tensor:
        r"""Return the query of the exponent, :math:`s q / \sqrt d`."""
        scale = query.size(-1) ** -0.5
        return query * (self.kernel.precision.to(query.dtype) * scale if isinstance(self.kernel, RBFKernel) else scale)

    def key_log_magnitude(self, key: Tensor) -> Tensor:
        r"""Return what is added to the exponent of keys, :math:`\text{mag}(k) - s |k|^2 / 2 \sqrt d`; (..., h, m)."""
        if not isinstance(self.kernel, RBFKernel):
            magnitude: Tensor = self.magnitude(key)
            return magnitude
        squared = key.square().sum(-1) / (2.0 * math.sqrt(key.size(-1)))
        precision = self.kernel.precision.squeeze(-1)
        # with p = 2, both are multiples of the same square, whose difference is exactly zero where s = 1
        return (
            squared * (1.0 - precision) if self.magnitude.fixed_p == 2.0 else self.magnitude(key) - squared * precision
        )

    def log_similarity(self, x: Tensor, y: Tensor, feature_map: FeatureMap | None) -> Tensor:
        """Return the logarithm of the whole similarity between points.

        Args:
            x: Points in the place of queries.
            y: Points in the place of keys.
            feature_map: What the spectrum returned, if there is one.

        Shapes:
            x (..., h, n, d); y (..., h, m, d); the result (..., h, n, m).
        """
        if self.kernel is None and self.spectrum is None:
            return -squared_distance(x, y) / (2.0 * math.sqrt(x.size(-1)))
        logarithm: Tensor | float = 0.0 if self.kernel is None else self.kernel(x, y)
        if feature_map is not None:
            product = with_atom(feature_map(x) @ feature_map(y).mT, self._share_of(x))
            logarithm = logarithm + (product.square() + FLOOR).log()
        assert isinstance(logarithm, Tensor)
        return logarithm

    def extra_repr(self) -> str:
        """Name the backend."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, backend={self.backend!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.free_share is not None and isinstance(self.spectrum, DirectSpectrum | ImplicitSpectrum):
            add_exact_part(state_dict, prefix, self.num_heads, self.spectrum)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _share_of(self, query: Tensor) -> Tensor | None:
        """The share as it broadcasts with weights, (h, 1, 1)."""
        share = self.share
        return None if share is None else share.to(query.dtype)[:, None, None]

    def _attend_by_formula(
        self, kernel: Kernel, query: Tensor, keys: EncodedKeys, mask: Mask, dropout_p: float, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attend with a kernel that is no exponential of a product, densely."""
        assert keys.key is not None and keys.log_magnitude is not None
        n, m = query.size(-2), keys.length
        mask.check(n, m)
        log_weight = kernel(at_least_float32(query), keys.key) + keys.log_magnitude.unsqueeze(-2)
        for bias in (mask.key_bias, mask.pair_bias):
            log_weight = log_weight if bias is None else log_weight + bias
        value = at_least_float32(keys.value)
        out, weights = log_weight_attention(log_weight, value, mask.allowed(n, m, query.device), dropout_p)
        dtype = keys.value.dtype
        return out.to(dtype), weights.to(dtype) if need_weights else None

    def _decode_by_sums(
        self, query: Tensor, new: EncodedKeys, cache: Cache | None, dropout_p: float
    ) -> tuple[Tensor, Cache]:
        if new.features is None or new.key is not None:
            # says why it can't
            return self.attend(query, new)[0], new
        keys, magnitudes, values = new.features, new.log_magnitude, at_least_float32(new.value)
        assert magnitudes is not None
        new = replace(new, value=values)
        if cache is None:
            # all at once, and with gradients within the call
            out, _ = self.attend(query, new, Mask(causal=True), dropout_p=dropout_p)
            return out, SummedKeys(LinearState.empty(keys, values), new.feature_map).append(new)
        if dropout_p > 0.0 or not isinstance(cache, SummedKeys):
            raise ValueError(
                "a layer with backend='linear' goes on with a cache of its own, and without dropout; "
                "call layer.eval(), or build the layer with another backend"
            )
        assert new.feature_map is not None
        with without_autocast(query.device):
            features = call_feature_map(new.feature_map, at_least_float32(query))
        # causal within the call, too, which may have no positions
        outs = [values[..., :0, :]]
        for t in range(new.length):
            row = slice(t, t + 1)
            cache = cache.append(
                replace(new, value=values[..., row, :], features=keys[..., row, :], log_magnitude=magnitudes[..., row])
            )
            outs.append(cache.state.read(features[..., row, :], FLOOR))
        return torch.cat(outs, -2).to(query.dtype), cache


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 or float64: phases and magnitudes lose their meaning in half precision.

    Example:
        >>> at_least_float32(torch.ones((), dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x if x.dtype == torch.float64 else x.float()
