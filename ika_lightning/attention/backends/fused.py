"""One kernel for all that happens to a tile of weights, on GPUs; the kernels are written in Triton.

Products are made in the dtype of the values, of which half precision takes features and what the exponent is a product
of as well, and are summed in float32, in which biases, squares, exponentials and sums stay. So a weight is as precise
as in PyTorch's own attention in that dtype.

**Operations,** in multiply-adds for a pair of a query and a key that it sees: d + R + e forward, and 4 (d + R) + 3 e
backward, whose two passes make each tile anew instead of adding to one gradient from many programs. A flash kernel of
dot-product attention has d + e and 3 d + 2 e. With d = e = 64, and as many operations a second in both, the time would
be these multiples of the flash kernel's:

===========================  =======  ========  ====
factors                      forward  backward  both
===========================  =======  ========  ====
exponent and R = 32          1.25     1.80      1.64
exponent and R = 64          1.50     2.20      2.00
exponent and R = 128         2.00     3.00      2.71
R = 32 alone                 0.75     1.00      0.93
R = 64 alone                 1.00     1.40      1.29
R = 128 alone                1.50     2.20      2.00
===========================  =======  ========  ====

An H100 (989 TFLOP/s of bfloat16, 3.35 TB/s) makes some 140 multiply-adds in the time of an exponential, of which there
is one for each pair and pass with an exponent, three in all where the flash kernel has two, and next to none without.
**Bytes:** at n = 16,384 and 16 heads, forward and backward with R = 64 are 7.7 TFLOP, 7.8 ms at that rate; inputs,
results and gradients are 0.4 GB, 0.1 ms each time they pass through memory. So it is bound by products.

**Measured** on an H200 in bfloat16 (PyTorch 2.11, Triton 3.6), forward and backward, exponent and R features, as
multiples of PyTorch's flash kernel: at n = 16,384 for R = 32, 64 and 128 it is 2.4, 2.5 and 3.2, causal 2.6, 3.1 and
3.5; at n = 4,096 it is 2.7, 2.7 and 3.3, causal 3.0, 3.2 and 3.9. FlexAttention with a bias for each key is 4.0 at
n = 4,096. So a pass takes longer than its products: what is done to each weight between them (some ten operations and
an exponential) is not hidden behind products, as it is in kernels that are written for one architecture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import Tensor

from ika_lightning.attention.backends import fused_launch
from ika_lightning.attention.backends.call import NEEDS_PAIRS, Call
from ika_lightning.attention.backends.dense import Dense
from ika_lightning.attention.backends.fused_launch import WIDEST, Widths
from ika_lightning.attention.backends.operators import differentiable_operator
from ika_lightning.attention.mask import Mask

HAS_TRITON = find_spec("triton") is not None

# Triton's interpreter runs kernels on the CPU, for tests; it is chosen before Triton is imported.
IS_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"


class Fused:
    """Attention by tiles that never leave a GPU's registers, with a deterministic backward that makes them again."""

    name = "fused"

    def refuses(self, call: Call) -> str | None:
        """Refuse other devices and dtypes, and what needs single weights."""
        if call.device.type != "cuda" and not (IS_INTERPRETED and call.device.type == "cpu"):
            return f"serves calls on CUDA devices, not on {call.device.type!r}"
        if not HAS_TRITON:
            return "needs Triton: pip install 'ika-lightning[gpu]'"
        if call.value.dtype == torch.float64:
            return "serves float32, float16 and bfloat16, not float64"
        width = Widths(call.exponent_width, call.num_features, call.value.size(-1)).padded.total
        if width > WIDEST:
            return f"has tiles for widths up to {WIDEST} in all, each rounded up to a power of 2, not for {width}"
        return None if call.sums_over_keys else NEEDS_PAIRS

    def cost(self, call: Call, price: Mapping[str, float]) -> float:
        r"""Estimate the time.

        .. math::
            h P\, (5 (d + R) + 4 e)\, c_\text{product} + h P\, c_\text{fused}

        P pairs of a query and a key that it may see. Two passes of the backward make a tile each: a product more than
        the chunked backend's, of each factor.
        """
        if call.device.type == "cpu":
            # the interpreter's, which nobody should be given
            return math.inf
        (n, m), causal = (call.n, call.m), call.mask.causal
        seen = min(n, m) if causal else m
        pairs = call.lead.numel() * seen * (n - seen / 2 if causal else n)
        product = 5 * (call.exponent_width + call.num_features) + 4 * call.value.size(-1)
        return price["fused call"] + pairs * (product * price["fused product"] + price["fused entry"])

    def __call__(self, call: Call) -> tuple[Tensor, None]:
        """Attend; a query that may attend to nothing gets zeros, with zero gradient."""
        n, m = call.n, min(call.m, call.n) if call.mask.causal else call.m
        allowed, bias = call.allowed(causal=False), call.bias
        bias = call.value.new_zeros(1, call.m) if bias is None else bias
        if allowed is not None:
            bias = bias.masked_fill(~allowed, -math.inf)
        lead = torch.broadcast_shapes(call.lead, bias.shape[:-2])
        of_keys = _leading_of_keys(lead, call, bias)
        query_features, constant = call.query_features, call.value.new_empty(0)
        if call.share is not None and query_features is not None:
            query_features, constant = call.share * query_features, (1.0 - call.share).squeeze(-1)
        # nobody sees keys after the last query
        key, key_features = (None if x is None else x[..., :m, :] for x in (call.key, call.key_features))
        value, dtype = call.value[..., :m, :], call.product_dtype or call.value.dtype
        out: Tensor = _fused(
            *(_joined(x, lead, n, dtype, value) if of_query else _joined(x, of_keys, m, dtype, value)
              for x, of_query in ((call.query, True), (key, False), (query_features, True), (key_features, False))),
            _joined(value, of_keys, m, dtype, value),
            bias.squeeze(-2).expand(*of_keys, call.m)[..., :m].reshape(math.prod(of_keys), m).float(),
            constant.expand(*lead, constant.size(-1)).reshape(lead.numel(), constant.size(-1)).float(),
            call.floor, call.mask.causal,
        )[0]  # fmt: skip
        return out.view(*lead, n, value.size(-1)), None


def _leading_of_keys(lead: torch.Size, call: Call, bias: Tensor) -> tuple[int, ...]:
    """Return the leading axes of keys: 1 for the last ones over which they are all the same, as grouped heads share."""
    parts = (call.key, call.key_features, call.value, bias)
    given = torch.broadcast_shapes(*(x.shape[:-2] for x in parts if x is not None))
    own = len(lead)
    while own > 0 and (len(lead) - own >= len(given) or given[own - len(lead) - 1] == 1):
        own -= 1
    return *lead[:own], *(1,) * (len(lead) - own)


def _joined(x: Tensor | None, lead: tuple[int, ...], rows: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return a tensor with one leading axis, (b, rows, width); without a width where there is none."""
    x = like.new_empty(rows, 0) if x is None else x
    return x.expand(*lead, *x.shape[-2:]).reshape(math.prod(lead), *x.shape[-2:]).to(dtype)


def dense(
    query: Tensor,
    key: Tensor,
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    bias: Tensor,
    constant: Tensor,
    floor: float,
    is_causal: bool,
) -> Tensor:
    """Compute what the operator does by PyTorch's own operations.

    Shapes:
        query (b, n, d); query_features (b, n, R); constant (b, 1), or (b, 0) if it is zero; key (b / g, m, d);
        key_features (b / g, m, R); value (b / g, m, e); bias (b / g, m); the result (b, n, e). Each g heads of queries
        after one another have the same keys. A factor is absent where its width is zero.
    """
    allowed = bias != -math.inf
    if constant.size(-1) > 0:
        ones = torch.ones_like(key_features[..., :1])
        query_features = torch.cat([query_features, constant[..., None].expand(-1, query.size(1), 1)], -1)
        key_features = torch.cat([key_features, ones], -1)
    of_queries = [x.float().unflatten(0, (value.size(0), -1)) if x.size(-1) else None for x in (query, query_features)]
    of_keys = [x.float().unsqueeze(1) if x.size(-1) else None for x in (key, key_features)]
    call = Call(
        of_queries[0], of_keys[0], of_queries[1], of_keys[1], value.float().unsqueeze(1),
        bias.masked_fill(~allowed, 0.0).unsqueeze(1), Mask(keys=allowed[:, None, None], causal=is_causal),
        0.0, floor, False,
    )  # fmt: skip
    return Dense()(call)[0].flatten(0, 1).to(value.dtype)


def _shapes(query: Tensor, key: Tensor, a: Tensor, b: Tensor, value: Tensor, bias: Tensor, *_: object) -> tuple[
    Tensor, ...
]:  # fmt: skip
    rows = query.shape[:-1]
    return value.new_empty(*rows, value.size(-1)), bias.new_empty(rows)


_fused = differentiable_operator("fused", fused_launch.forward, fused_launch.backward, dense, 7, _shapes, batched=True)
