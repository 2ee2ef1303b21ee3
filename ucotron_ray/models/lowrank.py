"""A linear layer with a LoRA adapter as one differentiable function: y = x Wᵀ + s (x Aᵀ) Bᵀ.

PEFT adds the adapter's output to the layer's in three more passes over an activation, and keeps two more of them for
the backward pass. Here the products are accumulated in place, and only x and the narrow x Aᵀ are kept.
"""

from typing import Any

import torch
import torch.nn.functional as F


class LowRankLinear(torch.autograd.Function):
    """x [N, in], W [out, in] (frozen), bias [out] or None, A [rank, in], B [out, rank] → [N, out], in W's type."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:
        x_c, a_c, b_c = (tensor.to(weight.dtype) for tensor in (x, a, b))
        low = F.linear(x_c, a_c)
        y = F.linear(x_c, weight, bias)
        y.addmm_(low, b_c.t(), alpha=scaling)
        ctx.save_for_backward(x_c, low, weight, a, b)
        ctx.scaling, ctx.x_dtype = scaling, x.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        x, low, weight, a, b = ctx.saved_tensors
        dy = gradients[0].to(weight.dtype)
        d_low = (dy @ b.to(weight.dtype)).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(d_low, a.to(weight.dtype)).to(ctx.x_dtype)
        da = (d_low.t() @ x).to(a.dtype)
        db = (dy.t() @ low).mul_(ctx.scaling).to(b.dtype)
        return dx, None, None, da, db, None


def can_fuse(module: Any) -> bool:
    """Whether a PEFT layer is one that this computes: one plain adapter on one plain, frozen linear layer."""
    base = module.get_base_layer()
    plain = type(base) is torch.nn.Linear and base.weight.is_floating_point() and not base.weight.requires_grad
    single = list(module.lora_A) == list(module.active_adapters) and len(module.lora_A) == 1
    variants = getattr(module, "lora_variant", {})
    return plain and single and not module.merged and not variants and not any(module.lora_bias.values())


def forward(module: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the layer does instead of PEFT's forward. A disabled adapter (DPO's reference) leaves the base alone."""
    base = module.get_base_layer()
    with torch.autocast(x.device.type, enabled=False):
        if module.disable_adapters:
            result: torch.Tensor = F.linear(x.to(base.weight.dtype), base.weight, base.bias)
            return result
        name = module.active_adapters[0]
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        flat = x.reshape(-1, x.shape[-1])
        y: torch.Tensor = LowRankLinear.apply(flat, base.weight, base.bias, a, b, module.scaling[name])  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], y.shape[-1])
