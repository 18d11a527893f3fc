"""Floating-point operations as PyTorch counts them, with those of its attention on a CPU, which it leaves out."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


for operator, formula in ((FORWARD, forward), (BACKWARD, backward)):
    if operator not in flop_registry:  # a later PyTorch may have them
        register_flop_formula(operator)(formula)


def operations(run: Callable[[], Any]) -> int:
    """The operations that a call takes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
