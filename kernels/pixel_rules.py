"""What a label pixel says of its classes: the gradient of its enlarged logits, by the rule of each loss."""

import triton
import triton.language as tl

from tritonsoft.kernels.enlarging import exponential_of_units
from tritonsoft.kernels.softmax import class_weight

# `rule`:  cross entropy: the gradient of each pixel's loss (B, H, W) and its strides, or None where it is one number,
#          the number by which it is divided or None, the weights of the classes or None with their stride, None;
#          overlap: the gradient of the values (B, C), the slopes (B, C, 2), both with their strides, and the mean slope
#          of each pixel (B, H, W), contiguous.
# `terms`: of the pixels at hand, which count; the logsumexp; a factor of all classes; cross entropy with smoothed
#          labels: the share of the target that the label's class gets, and each class; overlap: the mean slope.


@triton.jit
def scalars_of_slopes(slopes, sample, classes, exists, ACCUMULATOR: tl.constexpr):
    """How an overlap loss changes with the predicted mass of classes, in pixels of other classes and of their own.

    ``slopes``: the gradient of the values (B, C), their slopes (B, C, 2), each followed by its strides.
    """
    grad_strides, slopes_strides = slopes[1], slopes[3]
    classes = classes.to(tl.int64)
    grad = tl.load(slopes[0] + sample * grad_strides[0] + classes * grad_strides[1], mask=exists, other=0.0)
    pointers = slopes[2] + sample * slopes_strides[0] + classes * slopes_strides[1]
    by_mass = tl.load(pointers, mask=exists, other=0.0)
    by_distance = tl.load(pointers + slopes_strides[2], mask=exists, other=0.0)
    # In its own pixels the prediction lies below the labelled mass, which is 1, elsewhere above, which is 0.
    return (grad * (by_mass + by_distance)).to(ACCUMULATOR), (grad * (by_mass - by_distance)).to(ACCUMULATOR)


@triton.jit
def terms_of_pixels(
    rule,  # the maps' pointers are those of this sample
    lse,
    row,
    columns,
    label,
    out_width,
    num_classes,
    common_factor,
    all_weights,
    RULE: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    OFFSET: tl.constexpr,
):
    pixels = tl.cast(row, OFFSET) * out_width + columns
    known = label >= 0
    lse_here = tl.load(lse + pixels, mask=known, other=0.0).to(ACCUMULATOR)
    factor = common_factor
    others = ()
    if RULE == "overlap":
        others = (tl.load(rule[4] + pixels, mask=known, other=0.0).to(ACCUMULATOR),)
    else:
        if rule[1] is not None:
            offsets = tl.cast(row, OFFSET) * rule[1][1] + columns.to(OFFSET) * rule[1][2]
            factor = factor * tl.load(rule[0] + offsets, mask=known, other=0.0).to(ACCUMULATOR)
        if rule[3][0] is not None or LABEL_SMOOTHING > 0:
            weight = class_weight(rule[3], label, known, ACCUMULATOR)
            from_label = (1 - LABEL_SMOOTHING) * weight
            mass = from_label
            if LABEL_SMOOTHING > 0:
                from_each = LABEL_SMOOTHING / num_classes.to(ACCUMULATOR)
                mass += from_each * all_weights
                inverse_mass = 1 / tl.where(mass > 0, mass, 1.0)
                others = (from_label * inverse_mass, from_each * inverse_mass)
            known &= mass > 0
            factor = tl.where(known, factor * mass, 0.0)
    return (known, lse_here, factor) + others  # noqa: RUF005 - Triton unpacks nothing here


@triton.jit
def gradient_of_class(logits, terms, is_label, scalars, RULE: tl.constexpr):
    """What the pixels say of one class, but for the factor of all classes."""
    probability = exponential_of_units(logits - terms[1])
    probability = tl.where(terms[0], probability, 0.0)  # also where a logit is not a number
    if RULE == "overlap":
        return probability * (tl.where(is_label, scalars[1], scalars[0]) - terms[3])
    elif len(terms) > 3:
        return probability - tl.where(is_label, terms[3], 0.0) - terms[4] * scalars[0]
    else:
        return tl.where(is_label, probability - 1, probability)


@triton.jit
def scalars_of_class(rule, sample, class_index, exists, RULE: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """Cross entropy: the weight. Overlap: how the loss changes with the predicted mass, of other classes and of it."""
    if RULE == "overlap":
        return scalars_of_slopes(rule, sample, class_index, exists, ACCUMULATOR)
    else:
        return (class_weight(rule[3], class_index, exists, ACCUMULATOR),)
