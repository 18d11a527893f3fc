"""The one Transformer of data2vec: waveforms, tokens and patches all pass through these blocks.

Inside the encoder there is no padding. Hidden states are *packed*, `(N, D)`: the N real positions of a batch, row
after row. Projections, norms and feed-forwards never see anything else; only attention needs to know which position
belongs to which row, and `Packing` tells it.

Shapes: B batch, T frames or tokens, N real positions of a batch, D width, H heads, K width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2v.errors import InputError

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "selu", "silu", "swish", "tanh"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "selu": F.selu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch are.

    Attributes:
        batch: B.
        length: T, the padded length.
        mask: (B, T) bool, True at real positions; None when every position is real.
        indices: (N,) the real positions in the flattened (B * T); None when every position is real.
        lengths: the rows' numbers of real positions, known on the host; None while compiling, where they are not.
        filler: how many of the N packed positions are zeros behind the real ones, see the function `filler`.
    """

    batch: int
    length: int
    mask: Tensor | None = None
    indices: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    filler: int = 0

    @classmethod
    def of(cls, mask: Tensor | None, batch: int, length: int, filler: int = 0) -> "Packing":
        """Packing of a (B, T) mask, nonzero at real positions; None means that nothing is padded."""
        compiling = torch.compiler.is_compiling()
        if mask is None:
            return cls(batch, length, lengths=(length,) * batch, filler=filler)
        mask = mask.bool()
        lengths = None if compiling else tuple(mask.sum(dim=1).tolist())
        if lengths is not None and min(lengths) == length:
            return cls(batch, length, lengths=lengths, filler=filler)
        return cls(batch, length, mask, mask.flatten().nonzero().squeeze(1), lengths, filler)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring rows of one length, as (number of rows, length): the shapes that attention can take at once."""
        return [(len(list(rows)), length) for length, rows in groupby(self.lengths)]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)"""
        x = x.flatten(0, 1)
        return self.fill(x if self.indices is None else x.index_select(0, self.indices))

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros at padded positions."""
        x = self.trim(x)
        if self.indices is not None:
            x = x.new_zeros(self.batch * self.length, *x.shape[1:]).index_copy(0, self.indices, x)
        return x.unflatten(0, (self.batch, self.length))

    def fill(self, x: Tensor) -> Tensor:
        """The real positions -> (N, ...), zeros behind."""
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, self.filler)) if self.filler else x

    def trim(self, x: Tensor) -> Tensor:
        """(N, ...) -> the real positions."""
        return x[: -self.filler] if self.filler else x

    def spread(self, x: Tensor) -> Tensor:
        """(B, ...) -> (N, ...), a row's value at each of its positions."""
        return self.fill(
            x.repeat_interleave(self.length, 0) if self.indices is None else x[self.indices // self.length]
        )


def filler(positions: int, x: Tensor) -> int:
    """How many positions to add so that their number is a multiple of 64, where that pays; else 0.

    On a CPU in bf16, oneDNN compiles a kernel for every new shape of a product. Packed batches hardly ever have the
    same number of positions, and compiling takes up to half of a small model's time.
    """
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != torch.float32
    low = x.device.type == "cpu" and (autocast or x.dtype != torch.float32)
    return -positions % 64 if low and not torch.compiler.is_compiling() else 0


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention written out, for those who want to see the weights.

    Args:
        q, k, v: (N, H, K).
        packing: which positions belong together.
        bias: (1, H, T, T), added to the scores.
        dropout: share of the weights set to zero.

    Returns:
        Context (N, H, K) and weights (B, H, T, T).
    """
    q, k, v = (packing.unpack(x).transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, T)
    if bias is not None:
        scores = scores + bias
    if packing.mask is not None:
        scores = scores.masked_fill(~packing.mask[:, None, None, :], torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return packing.pack((weights @ v).transpose(1, 2)), weights


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, packing: Packing, bias: Tensor | None, dropout: float) -> Tensor:
    """The same through `scaled_dot_product_attention`; returns the context (N, H, K).

    Rows of one length need no mask and so get the fastest kernel. On a CPU calls are cheap and wasted work is not, so
    each run of equal rows is a call. Elsewhere, and while compiling, one masked call on the padded batch is quicker
    than many small ones.
    """
    dtype = q.dtype
    if q.device.type == "cpu" and q.itemsize < 4 and not torch.compiler.is_compiling():
        # The CPU kernel's backward pass is up to twice as fast in fp32 as in bf16.
        q, k, v = q.float(), k.float(), v.float()
    if packing.mask is None or (packing.lengths is not None and q.device.type == "cpu"):
        q, k, v = (packing.trim(x) for x in (q, k, v))
        contexts, sizes = [], [rows * length for rows, length in packing.runs]
        for (rows, length), *qkv in zip(packing.runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            q_run, k_run, v_run = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in qkv)  # (rows, H, length, K)
            run_bias = None if bias is None else bias[..., :length, :length].to(q.dtype)
            context = F.scaled_dot_product_attention(q_run, k_run, v_run, run_bias, dropout)
            contexts.append(context.transpose(1, 2).flatten(0, 1))
        return packing.fill(contexts[0] if len(contexts) == 1 else torch.cat(contexts)).to(dtype)
    q, k, v = (packing.unpack(x).transpose(1, 2) for x in (q, k, v))  # (B, H, T, K)
    mask = packing.mask[:, None, None, :]
    if bias is not None:
        mask = bias.to(q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    return packing.pack(F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2))


class SelfAttention(nn.Module):
    """Multi-head self-attention over packed positions."""

    def __init__(self, width: int, heads: int, *, dropout: float, key_bias: bool, implementation: str):
        super().__init__()
        if width % heads:
            raise InputError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
        self.heads, self.dropout, self.implementation = heads, dropout, implementation
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        bias: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, D) -> (N, D), and the weights (B, H, T, T) when asked for, which takes the eager path."""
        q, k, v = (proj(x).unflatten(1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        dropout, weights = self.dropout if self.training else 0.0, None
        if self.implementation == "eager" or output_attentions:
            context, weights = eager_attention(q, k, v, packing, bias, dropout)
        else:
            context = sdpa_attention(q, k, v, packing, bias, dropout)
        if head_mask is not None:
            # Scaling a head's output equals scaling its weights, and needs no weights.
            context = context * head_mask[:, None].to(context.dtype)
            weights = None if weights is None else weights * head_mask[:, None, None]
        return self.out_proj(context.flatten(1)), weights if output_attentions else None


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, *, activation: str, activation_dropout: float, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]
        self.activation_dropout, self.dropout = nn.Dropout(activation_dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D)"""
        return self.dropout(self.fc2(self.activation_dropout(self.activation(self.fc1(x)))))


class Block(nn.Module):
    """Attention and feed-forward, each with its residual and norm.

    Speech and language normalise after the residual (`pre_norm=False`), as BERT; vision before, with LayerScale on each
    branch and DropPath, as BEiT.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        pre_norm: bool,
        activation: str,
        norm_eps: float,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        drop_path: float,
        layer_scale: float,
        key_bias: bool,
        implementation: str,
    ):
        super().__init__()
        self.pre_norm, self.drop_path = pre_norm, drop_path
        self.attn = SelfAttention(
            width, heads, dropout=attention_dropout, key_bias=key_bias, implementation=implementation
        )
        self.attn_dropout = nn.Dropout(dropout)
        self.attn_norm = nn.LayerNorm(width, eps=norm_eps)
        self.ffn = FeedForward(
            width, hidden, activation=activation, activation_dropout=activation_dropout, dropout=dropout
        )
        self.ffn_norm = nn.LayerNorm(width, eps=norm_eps)
        self.attn_scale = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale > 0 else None
        self.ffn_scale = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale > 0 else None

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        bias: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, D) -> (N, D), and the attention weights when asked for."""
        branch, weights = self.attn(
            self.attn_norm(x) if self.pre_norm else x, packing, bias, head_mask, output_attentions
        )
        x = x + self.branch(self.attn_dropout(branch), self.attn_scale, packing)
        x = x if self.pre_norm else self.attn_norm(x)
        x = x + self.branch(self.ffn(self.ffn_norm(x) if self.pre_norm else x), self.ffn_scale, packing)
        return x if self.pre_norm else self.ffn_norm(x), weights

    def branch(self, x: Tensor, scale: Tensor | None, packing: Packing) -> Tensor:
        """LayerScale, then DropPath: a residual branch is dropped for whole rows, and the kept ones are scaled up."""
        if scale is not None:
            x = scale * x
        if self.training and self.drop_path > 0:
            keep = torch.rand(packing.batch, device=x.device) >= self.drop_path  # (B,)
            x = x * packing.spread(keep / (1 - self.drop_path)).to(x.dtype)[:, None]
        return x


class Encoder(nn.Module):
    """A stack of blocks.

    Args:
        depth: number of blocks.
        layerdrop: chance that a block is skipped in training (Fan et al., 2019).
        drop_path: DropPath of the last block; it grows linearly from 0 at the first (Huang et al., 2016).
        **block: arguments of `Block`.
    """

    def __init__(self, depth: int, *, layerdrop: float = 0.0, drop_path: float = 0.0, **block):
        super().__init__()
        self.layerdrop, self.gradient_checkpointing = layerdrop, False
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(Block(**block, drop_path=rate) for rate in rates)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        biases: list[Tensor | None] | None = None,
        head_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor | None, ...] | None]:
        """Run the blocks.

        Args:
            x: (N, D).
            packing: where the positions came from.
            biases: each layer's (1, H, T, T) attention bias.
            head_mask: (H,) or (layers, H): each head's output is multiplied by it.
            output_hidden_states: return the input and every layer's output, padded: (B, T, D).
            output_attentions: return every layer's weights (B, H, T, T).

        Returns:
            The last output (N, D), the hidden states, the attention weights; the latter two None unless asked for.
        """
        hidden_states, attentions = [packing.unpack(x)] if output_hidden_states else None, []
        for i, layer in enumerate(self.layers):
            weights = None
            if not (self.training and self.layerdrop > 0 and torch.rand(()).item() < self.layerdrop):
                bias = None if biases is None else biases[i]
                heads = head_mask if head_mask is None or head_mask.ndim == 1 else head_mask[i]
                run = partial(checkpoint, layer, use_reentrant=False) if self.gradient_checkpointing else layer
                x, weights = run(x, packing, bias, heads, output_attentions)
            if output_hidden_states:
                hidden_states.append(packing.unpack(x))
            attentions.append(weights)
        return (
            x,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )
