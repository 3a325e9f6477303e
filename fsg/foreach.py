"""Operations over lists of tensors: on a GPU, one kernel for many of them.

torch 2.14 has them under private names alone. A later torch has them as `torch.foreach`, which then replaces this file.
"""

import torch
from torch import Tensor

add_ = torch._foreach_add_
addcmul_ = torch._foreach_addcmul_
addcdiv_ = torch._foreach_addcdiv_
clamp_max_ = torch._foreach_clamp_max_
clamp_min_ = torch._foreach_clamp_min_
copy_ = torch._foreach_copy_
div_ = torch._foreach_div_
lerp_ = torch._foreach_lerp_
mul = torch._foreach_mul
mul_ = torch._foreach_mul_
norm = torch._foreach_norm
sqrt = torch._foreach_sqrt
zero_ = torch._foreach_zero_

Tensors = list[Tensor] | tuple[Tensor, ...]


def add_number_(tensors: Tensors, number: float | Tensor) -> None:
    """tensors ← tensors + number."""
    if isinstance(number, Tensor):
        add_(tensors, number, alpha=1)  # without alpha torch takes it for a number, for which the host would wait
    else:
        add_(tensors, number)


def add_scaled_(tensors: Tensors, others: Tensors, scale: float | Tensor) -> None:
    """tensors ← tensors + scale·others, rounded once, also where the scale is a tensor without dimension.

    That is then given in the forms of the tensors, all in the memory of one: without, each would be a kernel.
    """
    if not isinstance(scale, Tensor):
        add_(tensors, others, alpha=scale)
        return
    forms = [(x.shape, x.stride()) for x in tensors]
    extents = [1 + sum((n - 1) * step for n, step in zip(*form, strict=True)) for form in forms]
    spread = scale.to(tensors[0].dtype).expand(max(extents)).contiguous()
    addcmul_(tensors, others, [spread.as_strided(*form) for form in forms])
