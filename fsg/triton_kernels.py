# Triton compiles these functions; it is a language of its own, without Python's types and unpacking.
# mypy: ignore-errors
# ruff: noqa: RUF005
"""The kernels of `triton_mamba.py`: Mamba's scan and convolution on a GPU, in Triton.

The scan's tokens are cut into chunks, none of which reaches from one sequence into the next: `start` and `length`
[chunks] say where.
Chunks are scanned at once, each from a zero state; then their ends are carried on, a chunk at a time:

    end of a chunk = exp(A·ΣΔ)·its beginning + its end from a zero state

With its beginning known, each chunk is scanned once more for its outputs: those of its tokens from number `skip` on, in
the rows of y from `row` on. The backward pass goes the same ways in reverse, and recomputes the states within a chunk.

A program has BLOCK_E channels of one chunk, with all their states, padded to BLOCK_N. What several programs add to is
kept apart by program and added up behind: nothing is added atomically, so the bits of the result are always the same.
A token outside of the chunk has Δ = x = 0: it changes no state.
"""

import triton
import triton.language as tl


@triton.jit
def states_from_zero(
    x, delta, A, B, states, total, start, length, E, N,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Of each chunk: ΣΔ in `total` [chunks, E], and its last state, from a zero one, in `states` [chunks, E, N]."""
    chunk = tl.program_id(0).to(tl.int64)
    e, n = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    within, both = e < E, (e < E)[:, None] & (n < N)[None, :]
    here = e[:, None] * N + n[None, :]
    a = tl.load(A + here, mask=both, other=0.0)
    first, count = tl.load(start + chunk), tl.load(length + chunk)
    h = tl.zeros([BLOCK_E, BLOCK_N], dtype=A.dtype.element_ty)
    sum_delta = tl.zeros([BLOCK_E], dtype=A.dtype.element_ty)
    for begin in range(0, count, STEP):
        for i in tl.static_range(STEP):
            t, inside = first + begin + i, begin + i < count
            d = tl.load(delta + t * E + e, mask=within & inside, other=0.0)
            step = d * tl.load(x + t * E + e, mask=within & inside, other=0.0)
            b = tl.load(B + t * N + n, mask=(n < N) & inside, other=0.0)
            h = tl.exp(d[:, None] * a) * h + step[:, None] * b[None, :]
            sum_delta += d
    tl.store(states + chunk * E * N + here, h, mask=both)
    tl.store(total + chunk * E + e, sum_delta, mask=within)


@triton.jit
def carry(
    A, states, total, first_chunk, chunks, E, N,
    REVERSE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Put what each chunk of a sequence begins with, or in reverse ends with, in the place of what it adds."""
    first, count = tl.load(first_chunk + tl.program_id(0)), tl.load(chunks + tl.program_id(0))
    e, n = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    within, both = e < E, (e < E)[:, None] & (n < N)[None, :]
    here = e[:, None] * N + n[None, :]
    a = tl.load(A + here, mask=both, other=0.0)
    h = tl.zeros([BLOCK_E, BLOCK_N], dtype=A.dtype.element_ty)
    for i in range(0, count):
        chunk = first + (count - 1 - i if REVERSE else i)
        own = tl.load(states + chunk * E * N + here, mask=both, other=0.0)
        sum_delta = tl.load(total + chunk * E + e, mask=within, other=0.0)
        tl.store(states + chunk * E * N + here, h, mask=both)
        h = tl.exp(sum_delta[:, None] * a) * h + own


@triton.jit
def outputs(
    x, delta, A, B, C, D, states, y, start, length, skip, row, speaking, E, N,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """y of the `speaking` chunks, which have outputs, from the states that they begin with."""
    chunk = tl.load(speaking + tl.program_id(0))
    e, n = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    within, both = e < E, (e < E)[:, None] & (n < N)[None, :]
    here = e[:, None] * N + n[None, :]
    a = tl.load(A + here, mask=both, other=0.0)
    direct = tl.load(D + e, mask=within, other=0.0)
    h = tl.load(states + chunk * E * N + here, mask=both, other=0.0)
    first, count = tl.load(start + chunk), tl.load(length + chunk)
    silent, top = tl.load(skip + chunk), tl.load(row + chunk)
    for begin in range(0, count, STEP):
        for i in tl.static_range(STEP):
            t, inside, spoken = first + begin + i, begin + i < count, (begin + i >= silent) & (begin + i < count)
            m = top + begin + i - silent
            d = tl.load(delta + t * E + e, mask=within & inside, other=0.0)
            xt = tl.load(x + t * E + e, mask=within & inside, other=0.0)
            b = tl.load(B + t * N + n, mask=(n < N) & inside, other=0.0)
            c = tl.load(C + m * N + n, mask=(n < N) & spoken, other=0.0)
            h = tl.exp(d[:, None] * a) * h + (d * xt)[:, None] * b[None, :]
            tl.store(y + m * E + e, tl.sum(h * c[None, :], 1) + direct * xt, mask=within & spoken)


@triton.jit
def gradients_to_beginnings(
    delta, A, C, dy, gradients, start, length, skip, row, speaking, E, N,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Of each speaking chunk: what its own outputs give to the gradient of its first state, in `gradients`."""
    chunk = tl.load(speaking + tl.program_id(0))
    e, n = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    within, both = e < E, (e < E)[:, None] & (n < N)[None, :]
    here = e[:, None] * N + n[None, :]
    a = tl.load(A + here, mask=both, other=0.0)
    first, count = tl.load(start + chunk), tl.load(length + chunk)
    silent, top = tl.load(skip + chunk), tl.load(row + chunk)
    decay = tl.full([BLOCK_E, BLOCK_N], 1.0, dtype=A.dtype.element_ty)
    g = tl.zeros([BLOCK_E, BLOCK_N], dtype=A.dtype.element_ty)
    for begin in range(0, count, STEP):
        for i in tl.static_range(STEP):
            t, inside, spoken = first + begin + i, begin + i < count, (begin + i >= silent) & (begin + i < count)
            m = top + begin + i - silent
            d = tl.load(delta + t * E + e, mask=within & inside, other=0.0)
            c = tl.load(C + m * N + n, mask=(n < N) & spoken, other=0.0)
            dyt = tl.load(dy + m * E + e, mask=within & spoken, other=0.0)
            decay *= tl.exp(d[:, None] * a)
            g += decay * c[None, :] * dyt[:, None]
    tl.store(gradients + chunk * E * N + here, g, mask=both)


@triton.jit
def after(h, x, delta, a, B, t, e, n, E, N, inside):
    """The state after token t; h where that is not `inside`."""
    d = tl.load(delta + t * E + e, mask=(e < E) & inside, other=0.0)
    step = d * tl.load(x + t * E + e, mask=(e < E) & inside, other=0.0)
    b = tl.load(B + t * N + n, mask=(n < N) & inside, other=0.0)
    return tl.exp(d[:, None] * a) * h + step[:, None] * b[None, :]


@triton.jit
def backward(
    x, delta, A, B, C, D, states, gradients, dy, dx, ddelta, dA, dB, dC, dD, start, length, skip, row, T, M, E, N,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, STEP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """All gradients within a chunk, from its first state and from `gradients`, that of its last.

    PARTS parts of STEP tokens: a first pass keeps each part's first state, a second one, in reverse, a part's states.
    dA, dD of each chunk [chunks, E, N], [chunks, E]; dB, dC of each block of channels [blocks, T, N], [blocks, M, N].
    """
    chunk, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    e, n, parts = block * BLOCK_E + tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N), tl.arange(0, PARTS)
    within, both = e < E, (e < E)[:, None] & (n < N)[None, :]
    here = e[:, None] * N + n[None, :]
    a = tl.load(A + here, mask=both, other=0.0)
    direct = tl.load(D + e, mask=within, other=0.0)
    first, count = tl.load(start + chunk), tl.load(length + chunk)
    silent, top = tl.load(skip + chunk), tl.load(row + chunk)
    h = tl.load(states + chunk * E * N + here, mask=both, other=0.0)
    kept = tl.zeros([PARTS, BLOCK_E, BLOCK_N], dtype=A.dtype.element_ty)
    used = (count + STEP - 1) // STEP
    for part in range(0, used):
        kept = tl.where((parts == part)[:, None, None], h[None, :, :], kept)
        for i in tl.static_range(STEP):
            t, inside = first + part * STEP + i, part * STEP + i < count
            h = after(h, x, delta, a, B, t, e, n, E, N, inside)
    g = tl.load(gradients + chunk * E * N + here, mask=both, other=0.0)
    of_A = tl.zeros([BLOCK_E, BLOCK_N], dtype=A.dtype.element_ty)
    of_D = tl.zeros([BLOCK_E], dtype=A.dtype.element_ty)
    for reverse in range(0, used):
        part = used - 1 - reverse
        h = tl.sum(tl.where((parts == part)[:, None, None], kept, 0.0), 0)
        before = ()
        for i in tl.static_range(STEP):
            t, inside = first + part * STEP + i, part * STEP + i < count
            before = before + (h,)
            h = after(h, x, delta, a, B, t, e, n, E, N, inside)
        before = before + (h,)
        for back in tl.static_range(STEP):
            at = part * STEP + STEP - 1 - back
            t, inside, spoken = first + at, at < count, (at >= silent) & (at < count)
            m = top + at - silent
            d = tl.load(delta + t * E + e, mask=within & inside, other=0.0)
            xt = tl.load(x + t * E + e, mask=within & inside, other=0.0)
            b = tl.load(B + t * N + n, mask=(n < N) & inside, other=0.0)
            c = tl.load(C + m * N + n, mask=(n < N) & spoken, other=0.0)
            dyt = tl.load(dy + m * E + e, mask=within & spoken, other=0.0)
            g += c[None, :] * dyt[:, None]
            of_D += dyt * xt
            tl.store(dC + (block * M + m) * N + n, tl.sum(before[STEP - back] * dyt[:, None], 0), mask=(n < N) & spoken)
            through = tl.exp(d[:, None] * a) * g
            carried = through * before[STEP - 1 - back]
            of_step = tl.sum(g * b[None, :], 1)
            of_A += carried * d[:, None]
            tl.store(dB + (block * T + t) * N + n, tl.sum(g * (d * xt)[:, None], 0), mask=(n < N) & inside)
            tl.store(dx + t * E + e, direct * dyt + of_step * d, mask=within & inside)
            tl.store(ddelta + t * E + e, tl.sum(carried * a, 1) + of_step * xt, mask=within & inside)
            g = through
    tl.store(dA + chunk * E * N + here, of_A, mask=both)
    tl.store(dD + chunk * E + e, of_D, mask=within)


@triton.jit
def convolve(
    x, kernel, bias, position, out, T, E,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """silu(Σⱼ kernel[TAPS − 1 − j]·x_{t−j} + bias) of BLOCK_T tokens, where a token sees none of another sequence."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    both = (t < T)[:, None] & (e < E)[None, :]
    place = tl.load(position + t, mask=t < T, other=-1)
    total = tl.zeros([BLOCK_T, BLOCK_E], dtype=x.dtype.element_ty)
    total += tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    for back in range(0, TAPS):
        seen = both & (place >= back)[:, None]
        earlier = tl.load(x + (t - back)[:, None] * E + e[None, :], mask=seen, other=0.0)
        total += tl.load(kernel + e * TAPS + TAPS - 1 - back, mask=e < E, other=0.0)[None, :] * earlier
    tl.store(out + t[:, None] * E + e[None, :], total * tl.sigmoid(total), mask=both)


@triton.jit
def convolve_backward(
    x, kernel, bias, position, dout, dtotal, dkernel, dbias, T, E,
    TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The gradient before silu, `dtotal` [T, E].

    dkernel [blocks, E, TAPS] and dbias [blocks, E] are those of each block of tokens.
    """
    block = tl.program_id(0).to(tl.int64)
    t = block * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    both = (t < T)[:, None] & (e < E)[None, :]
    place = tl.load(position + t, mask=t < T, other=-1)
    total = tl.zeros([BLOCK_T, BLOCK_E], dtype=x.dtype.element_ty)
    total += tl.load(bias + e, mask=e < E, other=0.0)[None, :]
    for back in range(0, TAPS):
        seen = both & (place >= back)[:, None]
        earlier = tl.load(x + (t - back)[:, None] * E + e[None, :], mask=seen, other=0.0)
        total += tl.load(kernel + e * TAPS + TAPS - 1 - back, mask=e < E, other=0.0)[None, :] * earlier
    gate = tl.sigmoid(total)
    given = tl.load(dout + t[:, None] * E + e[None, :], mask=both, other=0.0)
    d = given * gate * (1 + total * (1 - gate))
    tl.store(dtotal + t[:, None] * E + e[None, :], d, mask=both)
    tl.store(dbias + block * E + e, tl.sum(d, 0), mask=e < E)
    for back in range(0, TAPS):
        seen = both & (place >= back)[:, None]
        earlier = tl.load(x + (t - back)[:, None] * E + e[None, :], mask=seen, other=0.0)
        tl.store(dkernel + (block * E + e) * TAPS + TAPS - 1 - back, tl.sum(d * earlier, 0), mask=e < E)


@triton.jit
def convolve_to_input(
    kernel, position, dtotal, dx, T, E, TAPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr
):
    """dx: each token collects from those that saw it."""
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    total = tl.zeros([BLOCK_T, BLOCK_E], dtype=dx.dtype.element_ty)
    for ahead in range(0, TAPS):
        place = tl.load(position + t + ahead, mask=t + ahead < T, other=-1)
        saw = (place >= ahead)[:, None] & (e < E)[None, :]
        later = tl.load(dtotal + (t + ahead)[:, None] * E + e[None, :], mask=saw, other=0.0)
        total += tl.load(kernel + e * TAPS + TAPS - 1 - ahead, mask=e < E, other=0.0)[None, :] * later
    tl.store(dx + t[:, None] * E + e[None, :], total, mask=(t < T)[:, None] & (e < E)[None, :])
