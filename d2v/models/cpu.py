"""What is for CPUs alone: dropout, attention and sizes that are quicker there. Elsewhere each does what torch does.

Shapes: B batch, H heads, T frames or tokens, K width of a head, N real positions of a batch.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from d2v.models.packing import Packing

LEVELS = 2**16
"""What sixteen random bits can be: a chance of dropout is rounded to so many parts, which the factor allows for."""

LONGEST_MATERIALISED = {"dropout": math.inf, "fp32": 0, "16 bits": 1024, "16 bits, AVX-512, no gradients": 0}
"""Positions up to which all T * T weights of a row are kept, though torch's kernel could do without.

| what | its time beside the kernel's | on |
|---|---|---|
| dropout of weights | 0.5 to 0.8 in fp32, 0.2 to 0.4 in bf16, rows of 64 to 1000 | AMD Zen 3, AVX2 |
| fp32 | 0.8 up to 256 positions, longer from 500 on, and more memory: left | AMD Zen 3, AVX2 |
| fp32 | 1.0 to 1.3 up to 512 positions, 2 of 1024; without gradients 1.2 to 3 | Xeon with AMX |
| 16 bits | 0.5 | AMD Zen 3, AVX2, which has no instructions for bf16 |
| 16 bits, gradients | 0.2 to 0.5 up to 384 positions, 0.8 to 1.3 beyond; with a bias 0.3 to 0.4 | Xeon with AMX |
| 16 bits, gradients | 0.2 to 1.0 up to 512 positions, 1.5 of 1024; with a bias 0.7 to 0.8 | the same without AMX |
| 16 bits, no gradients | 1.1 to 1.8 | Xeon with AMX |
| 16 bits, no gradients | 1.2 to 2.4 | the same without AMX |
"""

SHORTEST_16_BIT = 128
"""Positions from which rows of several lengths go through attention in 16 bits if they are; shorter ones in fp32.

In bf16 oneDNN compiles its products anew for every number and length of rows, 3 to 6 ms each time; in fp32 it does not.
"""


def drop(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`F.dropout`, with a random number of 16 bits for each element on a CPU.

    There torch draws one after another on a single thread, unless the CPU is Intel's: in a small model an eighth of
    the time of an update, and more with more threads.

    Args:
        x: floating point, of any shape.
        p: chance that an element becomes zero; the others are scaled up.
        training: False to change nothing.
    """
    if not training or not 0 < p < 1 or not _eager_on_cpu(x):
        return F.dropout(x, p, training)
    dropped = min(round(p * LEVELS), LEVELS - 1)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all of their 64 bits
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = torch.ge(bits, dropped - LEVELS // 2, out=torch.empty(x.shape, dtype=x.dtype))  # faster than via bool
    return x * keep.mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """The module of the function."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return drop(x, self.p, self.training)


def unmasked_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, causal: bool) -> Tensor:
    """`F.scaled_dot_product_attention` of rows of one length, materialised on a CPU where that is quicker.

    torch's CPU kernel cannot drop weights, and what takes its place is 1.5 to 5 times slower than materialised
    attention; in bf16 the kernel itself takes twice as long. It needs less memory: a longer row stays with it.

    Args:
        q, k, v: (B, H, T, K).
        bias: (1, H, T, T), added to the scores; None with `causal`.
        dropout: share of the weights set to zero.
        causal: no position looks at a later one.

    Returns:
        (B, H, T, K).
    """
    length, width = q.shape[2:]
    if not _eager_on_cpu(q) or length > LONGEST_MATERIALISED[attention_kind(q, dropout)]:
        return F.scaled_dot_product_attention(q, k, v, bias, dropout, is_causal=causal)
    if causal:
        bias = q.new_full((length, length), -torch.inf).triu_(1)
    with torch.autocast("cpu", enabled=False):  # which would have the softmax in fp32, twice the memory to move
        scores = (q * width**-0.5) @ k.transpose(-1, -2)  # (B, H, T, T)
        scores = scores if bias is None else scores + bias
        return drop(scores.softmax(dim=-1), dropout) @ v


def attention_kind(q: Tensor, dropout: float) -> str:
    """The row of `LONGEST_MATERIALISED` that is about this."""
    if dropout > 0:
        return "dropout"
    if q.itemsize >= 4:
        return "fp32"
    return "16 bits" if torch.is_grad_enabled() or not has_bf16_kernels() else "16 bits, AVX-512, no gradients"


def linears(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Linear layers of one input; by one product if autocast computes in 16 bits on a CPU.

    Autocast casts the input for each layer, keeps as many copies for the backward pass, and casts and adds their
    gradients one by one. Without it there is nothing to gain: the weights would have to be joined.

    Args:
        x: (N, D).
        *layers: modules; unless all are of class `nn.Linear` itself and without hooks, they are called one by one.

    Returns:
        Each layer's output, (N, its width).
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if dtype == torch.float32 or not all(map(_is_plain, layers)) or not _eager_on_cpu(x):
        return tuple(each(x) for each in layers)
    parameters = [each.weight for each in layers] + [each.bias for each in layers]
    joined = _JoinedLinear.apply(x.to(dtype), *joined_casts(layers, dtype), *parameters)
    return joined.split([each.out_features for each in layers], dim=1)


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling a module is a product with its weights of fp32; hooks may change these, as in pruning."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
    hooked = any(getattr(layer, name) for name in hooks)
    return type(layer) is nn.Linear and layer.weight.dtype == torch.float32 and not hooked


class _JoinedLinear(torch.autograd.Function):
    """The product of `linears`, in 16 bits; gradients of weights are fp32."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor | None) -> Tensor:
        """(N, D) to (N, sum of the widths).

        Args:
            x: (N, D), in 16 bits.
            weight, bias: of all layers, from `joined_casts`.
            *parameters: the layers' weights and then their biases, to which the gradients belong.
        """
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what gradients need; by itself, as torch.func asks for."""
        x, weight, _, *parameters = inputs
        ctx.save_for_backward(x, weight)
        ctx.widths = [len(each) for each in parameters[: len(parameters) // 2]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Of the input, and of weights and biases where they are wanted."""
        x, weight = ctx.saved_tensors
        of_x, _, _, *wanted = ctx.needs_input_grad
        parts = gradient.split(ctx.widths, dim=1)
        # One product for the weights of all layers is slower where positions are few.
        weights = [(part.t() @ x).float() if each else None for part, each in zip(parts, wanted, strict=False)]
        biases = [part.sum(0).float() if each else None for part, each in zip(parts, wanted[len(parts) :], strict=True)]
        return gradient @ weight if of_x else None, None, None, *weights, *biases


@torch.no_grad()
def joined_casts(layers: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weights and biases of linear layers, one below the other, in 16 bits; zeros for a bias that is missing."""
    kept = KEPT.get()
    if kept is not None and layers in kept:
        return kept[layers]
    widths, first = [each.out_features for each in layers], layers[0].weight
    weight = first.new_empty(sum(widths), first.shape[1], dtype=dtype)
    bias = first.new_zeros(sum(widths), dtype=dtype)
    for each, of_weight, of_bias in zip(layers, weight.split(widths), bias.split(widths), strict=True):
        of_weight.copy_(each.weight)
        if each.bias is not None:
            of_bias.copy_(each.bias)
    if kept is not None:
        kept[layers] = weight, bias
    return weight, bias


KEPT: ContextVar[dict[tuple[Any, ...], tuple[Tensor, Tensor]] | None] = ContextVar("kept", default=None)
"""By layers, what `joined_casts` returns; None outside of `keeping_joined_casts`. As autocast's own, a thread's."""


@contextmanager
def keeping_joined_casts() -> Iterator[None]:
    """Within, weights that were cast once are not cast again; nothing may change them meanwhile."""
    token = KEPT.set({})
    try:
        yield
    finally:
        KEPT.reset(token)


@cache
def has_bf16_kernels() -> bool:
    """Whether torch's kernels use this CPU's instructions for bf16, those of AVX-512 and perhaps AMX."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2") and supported()


def attention_dtype(x: Tensor, packing: Packing) -> torch.dtype:
    """The type in which attention takes packed positions, (N, ...), run by run, see `SHORTEST_16_BIT`."""
    if x.device.type == "cpu" and x.itemsize < 4 and packing.length < SHORTEST_16_BIT and len(packing.runs) > 1:
        return torch.float32
    return x.dtype


def filler(positions: int, x: Tensor) -> int:
    """How many positions to add so that their number is a multiple of 64, where that pays; else 0.

    On a CPU in bf16, oneDNN compiles a kernel for every new shape of a product. Packed batches hardly ever have the
    same number of positions, and compiling takes up to half of a small model's time.
    """
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.float32
    return -positions % 64 if _eager_on_cpu(x) and (autocast or x.itemsize < 4) else 0


def _eager_on_cpu(x: Tensor) -> bool:
    """Whether x is on a CPU, and neither compiled nor traced."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
