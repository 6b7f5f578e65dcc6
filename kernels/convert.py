"""Conversions between what tensors hold and what kernels compute with, and the exponential function."""

import triton
import triton.language as tl

# Triton's interpreter loses the carry when it rounds to bfloat16, and converts that type from and to float32 alone.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def upcast(value, DTYPE: tl.constexpr):
    """To an arithmetic type, without rounding."""
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)
    return value.to(DTYPE)


@triton.jit
def downcast(value, DTYPE: tl.constexpr):
    """To the type of an output: to nearest, ties to even; clamped for uint8."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        value = value.to(tl.float32)
        if INTERPRETED:
            bits = value.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
            value = bits.to(tl.float32, bitcast=True)
    elif DTYPE == tl.uint8:  # noqa: SIM300
        # Adding 1.5 * 2^23 leaves a float32 no fraction bits: that rounds.
        value = tl.minimum(tl.maximum(value.to(tl.float32), 0.0), 255.0) + 12582912.0 - 12582912.0
    return value.to(DTYPE)


@triton.jit
def exponential(value):
    # Of the two, only `exp2` may flush subnormal results to 0: three instructions less.
    return tl.exp(value) if value.dtype == tl.float64 else tl.exp2(value * 1.4426950408889634)
