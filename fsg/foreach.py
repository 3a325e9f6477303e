"""Operations over lists of tensors: on a GPU, one kernel for many of them.

torch 2.14 has them under private names alone. A later torch has them as `torch.foreach`, which then replaces this file.
"""

import torch

add_ = torch._foreach_add_
addcmul_ = torch._foreach_addcmul_
clamp_max_ = torch._foreach_clamp_max_
clamp_min_ = torch._foreach_clamp_min_
copy_ = torch._foreach_copy_
div_ = torch._foreach_div_
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
norm = torch._foreach_norm
sqrt = torch._foreach_sqrt
