r"""The kernels of fused attention, in Triton: a tile of weights lives in registers from its products to its sums.

.. math:: w_{ij} = e^{q_i \cdot k_j + \text{bias}_j} \bigl((c + \phi_i \cdot \psi_j)^2 + \text{floor}\bigr)

A factor is absent where its vectors have no width. One program has a tile of queries and passes over the keys, twice:
forwards, and for the gradients of queries. Another has a tile of keys and passes over the queries, for the gradients
of keys; so each gradient is summed by one program, in one order, and two runs agree to the bit.

**Shifts.** The running maximum is that of the exponent alone, as in tiled dot-product attention; the square needs none.
What the forward saves is the normaliser of a row, :math:`\log_2 \sum_j w_{ij}`, inf in a row without weight. Without
an exponential of a product the maximum is one number until the diagonal, and a whole tile has as many exponentials as
keys. Float16 has no room for weights that are small in all of a row, so there the largest weight is scaled to 1.

Exponents are those of 2. Products of half precision are summed in float32, in which all else is computed.
"""

# No annotations from the future here: Triton reads those that say constexpr.

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)

# Beyond this no finite bias goes, so that differences of two stay finite.
FARTHEST = tl.constexpr(1.0e38)

# Where the running maximum begins: below all that is finite.
LOWEST = tl.constexpr(-1.6e38)

# The largest power of 2 that a factor may be, so that zero times it is zero.
STEEPEST = tl.constexpr(126.0)

TINY = tl.constexpr(1e-35)


@triton.jit
def _load(x, first, count, WIDTH: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr):
    """Load rows from the first one on, zeros beyond the last and beyond the width."""
    row, column = first + tl.arange(0, SIZE), tl.arange(0, PADDED)
    inside = row[:, None] < count
    if WIDTH != PADDED:
        inside = inside & (column[None, :] < WIDTH)
    return tl.load(x + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store(x, rows, first, count, WIDTH: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr):
    """Store what belongs to rows and columns that there are, in the dtype of where it goes."""
    row, column = first + tl.arange(0, SIZE), tl.arange(0, PADDED)
    inside = row[:, None] < count
    if WIDTH != PADDED:
        inside = inside & (column[None, :] < WIDTH)
    tl.store(x + row[:, None] * WIDTH + column[None, :], rows.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _load_bias(bias, first, count, SIZE: tl.constexpr):
    """Load what is added to the exponent of keys, -inf beyond the last, as exponents of 2."""
    column = first + tl.arange(0, SIZE)
    loaded = tl.load(bias + column, mask=column < count, other=float("-inf"))
    near = tl.clamp(loaded, -FARTHEST, FARTHEST, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(loaded == float("-inf"), loaded, near * LOG2E)


@triton.jit
def _exponential(exponent, IS_FLOORED: tl.constexpr):
    """Return 2 to the exponent; without a floor, weights may be zero at the maximum, and others be relative to them."""
    return tl.exp2(exponent) if IS_FLOORED else tl.exp2(tl.minimum(exponent, STEEPEST))


@triton.jit(do_not_specialize=["n", "m", "group"])
def forward_kernel(
    query, key, query_features, key_features, value, bias, constant, out, normaliser, n, m, group, floor,
    D: tl.constexpr, R: tl.constexpr, E: tl.constexpr, D_PADDED: tl.constexpr, R_PADDED: tl.constexpr,
    E_PADDED: tl.constexpr, HAS_CONSTANT: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Average values for a tile of queries."""
    tiles = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    # those that see the most keys begin first
    first = (tiles - 1 - tl.program_id(0) % tiles) * ROWS
    of_keys = head // group
    row = first + tl.arange(0, ROWS)
    if D > 0:
        q = _load(query + head * n * D, first, n, D, D_PADDED, ROWS)
    if R > 0:
        a = _load(query_features + head * n * R, first, n, R, R_PADDED, ROWS)
    one = tl.load(constant + head) if HAS_CONSTANT else 0.0
    sums, total = tl.zeros([ROWS, E_PADDED], tl.float32), tl.zeros([ROWS], tl.float32)
    largest, scale = tl.full([ROWS if D > 0 else 1], LOWEST, tl.float32), tl.full([ROWS], TINY, tl.float32)
    IS_FLOAT16: tl.constexpr = value.dtype.element_ty == tl.float16
    # tiles of keys that all rows see, then those that meet the diagonal
    seen = tl.minimum(m, first + ROWS) if IS_CAUSAL else m
    whole = tl.minimum(m, first) // COLUMNS * COLUMNS if IS_CAUSAL else m
    for ON_DIAGONAL in tl.static_range(0, 2 if IS_CAUSAL else 1):
        if ON_DIAGONAL:
            largest = tl.broadcast_to(largest, [ROWS])
        begin, end = (whole, seen) if ON_DIAGONAL else (0, whole)
        for start in range(begin, end, COLUMNS):
            exponent = _load_bias(bias + of_keys * m, start, m, COLUMNS)[None, :]
            if D > 0:
                k = _load(key + of_keys * m * D, start, m, D, D_PADDED, COLUMNS)
                exponent += tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
            if ON_DIAGONAL:
                column = start + tl.arange(0, COLUMNS)
                exponent = tl.where(column[None, :] <= row[:, None], exponent, float("-inf"))
            larger = tl.maximum(largest, tl.max(exponent, 1))
            decay, weight = tl.exp2(largest - larger), tl.exp2(exponent - larger[:, None])
            largest = larger
            if R > 0:
                b = _load(key_features + of_keys * m * R, start, m, R, R_PADDED, COLUMNS)
                similarity = tl.dot(a, tl.trans(b), input_precision=PRECISION) + one
                weight *= similarity * similarity + floor
            if IS_FLOAT16:
                larger_scale = tl.maximum(tl.maximum(scale * decay, tl.max(weight, 1)), TINY)
                weight *= (1.0 / larger_scale)[:, None]
                decay *= scale / larger_scale
                scale = larger_scale
            v = _load(value + of_keys * m * E, start, m, E, E_PADDED, COLUMNS)
            total = total * decay + tl.sum(weight, 1)
            sums = tl.dot(weight.to(v.dtype), v, sums * decay[:, None], input_precision=PRECISION)
    is_empty = total == 0.0
    total = tl.where(is_empty, 1.0, total)
    _store(out + head * n * E, sums / total[:, None], first, n, E, E_PADDED, ROWS)
    logarithm = largest + tl.log2(total)
    if IS_FLOAT16:
        logarithm += tl.log2(scale)
    tl.store(normaliser + head * n + row, tl.where(is_empty, float("inf"), logarithm), mask=row < n)


@triton.jit(do_not_specialize=["n", "m", "group"])
def query_gradient_kernel(
    query, key, query_features, key_features, value, bias, constant, out, normaliser, grad_out,
    projection, of_query, of_query_features, of_constant, n, m, group, floor,
    D: tl.constexpr, R: tl.constexpr, E: tl.constexpr, D_PADDED: tl.constexpr, R_PADDED: tl.constexpr,
    E_PADDED: tl.constexpr, HAS_CONSTANT: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    IS_FLOORED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Differentiate in a tile of queries; also store each row's product of its result and its gradient."""
    tiles = tl.cdiv(n, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tiles - 1 - tl.program_id(0) % tiles) * ROWS
    of_keys = head // group
    row = first + tl.arange(0, ROWS)
    if D > 0:
        q = _load(query + head * n * D, first, n, D, D_PADDED, ROWS)
        grad_q = tl.zeros([ROWS, D_PADDED], tl.float32)
    if R > 0:
        a = _load(query_features + head * n * R, first, n, R, R_PADDED, ROWS)
        grad_a = tl.zeros([ROWS, R_PADDED], tl.float32)
    one = tl.load(constant + head) if HAS_CONSTANT else 0.0
    grad_one = tl.zeros([ROWS], tl.float32)
    grad = _load(grad_out + head * n * E, first, n, E, E_PADDED, ROWS)
    result = _load(out + head * n * E, first, n, E, E_PADDED, ROWS)
    along = tl.sum(result.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(projection + head * n + row, along, mask=row < n)
    logarithm = tl.load(normaliser + head * n + row, mask=row < n, other=float("inf"))
    seen = tl.minimum(m, first + ROWS) if IS_CAUSAL else m
    whole = tl.minimum(m, first) // COLUMNS * COLUMNS if IS_CAUSAL else m
    for ON_DIAGONAL in tl.static_range(0, 2 if IS_CAUSAL else 1):
        begin, end = (whole, seen) if ON_DIAGONAL else (0, whole)
        for start in range(begin, end, COLUMNS):
            exponent = _load_bias(bias + of_keys * m, start, m, COLUMNS)
            if D > 0 or ON_DIAGONAL:
                exponent = exponent[None, :] - logarithm[:, None]
                if D > 0:
                    k = _load(key + of_keys * m * D, start, m, D, D_PADDED, COLUMNS)
                    exponent += tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
                if ON_DIAGONAL:
                    column = start + tl.arange(0, COLUMNS)
                    exponent = tl.where(column[None, :] <= row[:, None], exponent, float("-inf"))
                weight = _exponential(exponent, IS_FLOORED)
            else:
                shift = tl.maximum(tl.max(exponent, 0), LOWEST)
                weight = tl.exp2(exponent - shift)[None, :]
                weight *= tl.exp2(tl.minimum(shift - logarithm, STEEPEST))[:, None]
            v = _load(value + of_keys * m * E, start, m, E, E_PADDED, COLUMNS)
            weight *= tl.dot(grad, tl.trans(v), input_precision=PRECISION) - along[:, None]
            if R > 0:
                b = _load(key_features + of_keys * m * R, start, m, R, R_PADDED, COLUMNS)
                similarity = tl.dot(a, tl.trans(b), input_precision=PRECISION) + one
                # half of it, here and in what is summed of it
                of_similarity = weight * similarity
                grad_a = tl.dot(of_similarity.to(b.dtype), b, grad_a, input_precision=PRECISION)
                if HAS_CONSTANT:
                    grad_one += tl.sum(of_similarity, 1)
                weight *= similarity * similarity + floor
            if D > 0:
                grad_q = tl.dot(weight.to(k.dtype), k, grad_q, input_precision=PRECISION)
    if D > 0:
        _store(of_query + head * n * D, grad_q, first, n, D, D_PADDED, ROWS)
    if R > 0:
        _store(of_query_features + head * n * R, 2.0 * grad_a, first, n, R, R_PADDED, ROWS)
    if HAS_CONSTANT:
        tl.store(of_constant + head * n + row, 2.0 * grad_one, mask=row < n)


@triton.jit(do_not_specialize=["n", "m", "group"])
def key_gradient_kernel(
    query, key, query_features, key_features, value, bias, constant, normaliser, grad_out,
    projection, of_key, of_key_features, of_value, of_bias, n, m, group, floor,
    D: tl.constexpr, R: tl.constexpr, E: tl.constexpr, D_PADDED: tl.constexpr, R_PADDED: tl.constexpr,
    E_PADDED: tl.constexpr, HAS_CONSTANT: tl.constexpr, IS_CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    IS_FLOORED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Differentiate in a tile of keys, for all heads of queries that read it; its tiles of weights are transposed."""
    tiles = tl.cdiv(m, COLUMNS)
    of_keys = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles) * COLUMNS
    column = first + tl.arange(0, COLUMNS)
    if D > 0:
        k = _load(key + of_keys * m * D, first, m, D, D_PADDED, COLUMNS)
        grad_k = tl.zeros([COLUMNS, D_PADDED], tl.float32)
    if R > 0:
        b = _load(key_features + of_keys * m * R, first, m, R, R_PADDED, COLUMNS)
        grad_b = tl.zeros([COLUMNS, R_PADDED], tl.float32)
    v = _load(value + of_keys * m * E, first, m, E, E_PADDED, COLUMNS)
    grad_v = tl.zeros([COLUMNS, E_PADDED], tl.float32)
    exponent = _load_bias(bias + of_keys * m, first, m, COLUMNS)
    grad_bias = tl.zeros([COLUMNS], tl.float32)
    shift = tl.maximum(tl.max(exponent, 0), LOWEST)
    # the first tile of queries that sees any of the keys, and the first that sees all of them
    some = first // ROWS * ROWS if IS_CAUSAL else 0
    every = tl.minimum(n, tl.cdiv(first + COLUMNS, ROWS) * ROWS) if IS_CAUSAL else 0
    for member in range(0, group):
        head = of_keys * group + member
        one = tl.load(constant + head) if HAS_CONSTANT else 0.0
        for ON_DIAGONAL in tl.static_range(0, 2 if IS_CAUSAL else 1):
            begin, end = (some, every) if ON_DIAGONAL else (every, n)
            for start in range(begin, end, ROWS):
                row = start + tl.arange(0, ROWS)
                logarithm = tl.load(normaliser + head * n + row, mask=row < n, other=float("inf"))
                along = tl.load(projection + head * n + row, mask=row < n, other=0.0)
                if D > 0 or ON_DIAGONAL:
                    relative = exponent[:, None] - logarithm[None, :]
                    if D > 0:
                        q = _load(query + head * n * D, start, n, D, D_PADDED, ROWS)
                        relative += tl.dot(k, tl.trans(q), input_precision=PRECISION) * LOG2E
                    if ON_DIAGONAL:
                        relative = tl.where(column[:, None] <= row[None, :], relative, float("-inf"))
                    weight = _exponential(relative, IS_FLOORED)
                else:
                    weight = tl.exp2(exponent - shift)[:, None]
                    weight *= tl.exp2(tl.minimum(shift - logarithm, STEEPEST))[None, :]
                grad = _load(grad_out + head * n * E, start, n, E, E_PADDED, ROWS)
                of_weight = tl.dot(v, tl.trans(grad), input_precision=PRECISION) - along[None, :]
                if R > 0:
                    a = _load(query_features + head * n * R, start, n, R, R_PADDED, ROWS)
                    similarity = tl.dot(b, tl.trans(a), input_precision=PRECISION) + one
                    # half of it
                    of_similarity = (weight * similarity * of_weight).to(a.dtype)
                    grad_b = tl.dot(of_similarity, a, grad_b, input_precision=PRECISION)
                    weight *= similarity * similarity + floor
                grad_v = tl.dot(weight.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
                weight *= of_weight
                grad_bias += tl.sum(weight, 1)
                if D > 0:
                    grad_k = tl.dot(weight.to(q.dtype), q, grad_k, input_precision=PRECISION)
    if D > 0:
        _store(of_key + of_keys * m * D, grad_k, first, m, D, D_PADDED, COLUMNS)
    if R > 0:
        _store(of_key_features + of_keys * m * R, 2.0 * grad_b, first, m, R, R_PADDED, COLUMNS)
    _store(of_value + of_keys * m * E, grad_v, first, m, E, E_PADDED, COLUMNS)
    tl.store(of_bias + of_keys * m + column, grad_bias, mask=column < m)
