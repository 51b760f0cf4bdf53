"""A change added to the weights it is for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.linalg.lowrank import Factors, stack
from mergelab.linalg.precision import full_precision


@full_precision()
def added(weight: Tensor, changes: Sequence[Factors]) -> Tensor:
    """`weight + sum of B @ A`, computed in float32 (float64 for such weights) and rounded once.

    Changes are added in one product, so that the result does not depend on how they were grouped.

    Args:
        weight: `(out, in[, kh, kw])`, or a bias `(out,)`, in any dtype of real numbers.
        changes: `(out, in * kh * kw)`, or `(out, 1)`, on the weight's device; none of them: the weight as it is.

    Returns:
        A new tensor of the weight's shape and dtype.

    Raises:
        LayerError: the sum is not finite in that dtype.

    Example:
        >>> half = torch.ones(2, 2, dtype=torch.bfloat16)
        >>> added(half, [Factors(torch.ones(2, 1), torch.full((1, 2), x)) for x in (0.003, 0.003)])[0, 0].item()
        1.0078125
    """
    if not changes:
        return weight.detach().clone()
    total = stack(changes)
    flat = weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[:, None]
    wide = torch.promote_types(weight.dtype, torch.float32)
    wider = flat.to(wide, copy=True).addmm_(total.B.to(wide), total.A.to(wide))
    result = wider.reshape(weight.shape).to(weight.dtype)
    if not torch.stack(result.aminmax()).isfinite().all():  # many times as fast as asking every entry
        raise LayerError(
            f"the changed weights are not finite in {str(weight.dtype).removeprefix('torch.')}; use smaller weights, "
            "or a base model in bfloat16 or float32"
        )
    return result
