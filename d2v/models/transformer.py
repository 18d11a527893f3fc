"""The one Transformer of data2vec: waveforms, tokens and patches all pass through these blocks.

Inside the encoder there is no padding: hidden states are *packed*, see `d2v.models.packing`. Projections, norms and
feed-forwards see real positions only; attention alone needs to know which position belongs to which row.

Shapes: B batch, T frames or tokens, N real positions of a batch, D width, H heads, K width of a head, S positions that
are looked at.
"""

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2v.errors import InputError
from d2v.models.configuration import Activation
from d2v.models.cpu import Dropout, attention_dtype, drop, linears, unmasked_attention
from d2v.models.packing import Packing

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


@dataclass
class LayerCache:
    """What a decoder's layer keeps of the tokens it has read.

    Attributes:
        past: keys and values, (B, H, T, K) each, zeros at padding.
        memory: the same of the other encoder's states, for cross-attention.
    """

    past: tuple[Tensor, Tensor] | None = None
    memory: tuple[Tensor, Tensor] | None = None


class Cache:
    """Keys and values of all tokens that a decoder has read, so that the next one costs no more than itself.

    Attributes:
        mask: (B, T) bool, which of them are real; None before the first.
        layers: a `LayerCache` a layer.
    """

    def __init__(self, depth: int):
        self.mask: Tensor | None = None
        self.layers = [LayerCache() for _ in range(depth)]

    def read(self, packing: Packing, device: torch.device) -> Packing:
        """Note which of the next tokens are real; returns the packing of all tokens so far."""
        mask = packing.mask
        if mask is None:
            mask = torch.ones(packing.batch, packing.length, dtype=torch.bool, device=device)
        self.mask = mask if self.mask is None else torch.cat((self.mask, mask), dim=1)
        return Packing.of(self.mask, *self.mask.shape)


def attention_mask(queries: Packing, keys: Packing, causal: bool, device: torch.device) -> Tensor | None:
    """(B, 1, T, S) bool or narrower, True where a query may look at a key; None if everywhere.

    Args:
        queries: packing of the T positions that look.
        keys: packing of the S positions looked at; with `causal` the queries are the last of them.
        causal: a position sees itself and what comes before it.
        device: where the attention is computed.
    """
    mask = None if keys.mask is None else keys.mask[:, None, None, :]
    if causal and queries.length > 1:
        order = torch.ones(queries.length, keys.length, dtype=torch.bool, device=device)
        order = order.tril(keys.length - queries.length)
        mask = order if mask is None else mask & order
    return mask


def eager_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Explicit attention, which returns its weights.

    Args:
        q: (B, H, T, K).
        k, v: (B, H, S, K).
        mask: see `attention_mask`.
        bias: (1, H, T, S), added to the scores.
        dropout: share of the weights set to zero.

    Returns:
        Context (B, H, T, K) and weights (B, H, T, S).
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, T, S)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = drop(scores.softmax(dim=-1), dropout)
    return weights @ v, weights


def sdpa_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None, dropout: float
) -> tuple[Tensor, None]:
    """The same through `scaled_dot_product_attention`, which returns no weights."""
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, torch.finfo(q.dtype).min)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout), None


def attention_by_rows(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, bias: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """The same on packed positions, (N, H, K) to (N, H, K): each run of equally long rows is a call without a mask.

    On a CPU calls are cheap and wasted work is not. Elsewhere, and while compiling, one masked call on the padded
    batch is quicker than many small ones, unless nothing is padded.
    """
    dtype, within, runs = q.dtype, attention_dtype(q, packing), packing.runs
    q, k, v = (packing.trim(x.to(within)) for x in (q, k, v))
    contexts, sizes = [], [rows * length for rows, length in runs]
    for (rows, length), *qkv in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        q_run, k_run, v_run = (x.unflatten(0, (rows, length)).transpose(1, 2) for x in qkv)  # (rows, H, length, K)
        run_bias = None if bias is None else bias[..., :length, :length].to(q.dtype)
        context = unmasked_attention(q_run, k_run, v_run, run_bias, dropout, causal)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
    return packing.fill(contexts[0] if len(contexts) == 1 else torch.cat(contexts)).to(dtype)


class Attention(nn.Module):
    """Multi-head attention of packed positions over themselves, or over a memory: another encoder's states."""

    def __init__(self, width: int, heads: int, *, dropout: float, key_bias: bool, implementation: str, causal: bool):
        super().__init__()
        if width % heads:
            raise InputError(f"hidden_size {width} is not a multiple of num_attention_heads {heads}")
        self.heads, self.dropout, self.implementation, self.causal = heads, dropout, implementation, causal
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
        memory: tuple[Tensor, Packing] | None = None,
        cache: LayerCache | None = None,
        keys: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(N, D) -> (N, D), and the weights (B, H, T, S) when asked for, which takes the eager path.

        Args:
            x: (N, D).
            packing: where its positions came from.
            bias: (1, H, T, S), added to the scores.
            head_mask: (H,), a factor for each head's output.
            output_attentions: return the weights.
            memory: look at these states, (M, D), and their packing, instead of at x.
            cache: keys and values of earlier positions, to which those of x are added.
            keys: packing of all positions then.
        """
        source, source_packing = (x, packing) if memory is None else memory
        dropout = self.dropout if self.training else 0.0
        eager = self.implementation == "eager" or output_attentions
        alone = memory is None and cache is None
        weights = None
        if alone and not eager and packing.by_rows(x.device):
            projected = linears(x, self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (each.unflatten(1, (self.heads, -1)) for each in projected)  # (N, H, K)
            context = attention_by_rows(q, k, v, packing, bias, dropout, self.causal)
        else:
            q = self.q_proj(x).unflatten(1, (self.heads, -1))  # (N, H, K)
            k, v = self.keys_and_values(source, source_packing, memory is not None, cache)
            mask = attention_mask(packing, source_packing if keys is None else keys, self.causal, x.device)
            attend = eager_attention if eager else sdpa_attention
            context, weights = attend(packing.unpack(q).transpose(1, 2), k, v, mask, bias, dropout)
            context = packing.pack(context.transpose(1, 2))  # (N, H, K)
        if head_mask is not None:
            # Scaling a head's output equals scaling its weights, and needs no weights.
            context = context * head_mask[:, None].to(context.dtype)
            weights = None if weights is None else weights * head_mask[:, None, None]
        return self.out_proj(context.flatten(1)), weights if output_attentions else None

    def keys_and_values(
        self, source: Tensor, packing: Packing, is_memory: bool, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor]:
        """Padded keys and values, (B, H, S, K) each: the cache's, those of `source`, or both."""
        if is_memory and cache is not None and cache.memory is not None:
            return cache.memory
        k, v = (
            packing.unpack(proj(source).unflatten(1, (self.heads, -1))).transpose(1, 2)
            for proj in (self.k_proj, self.v_proj)
        )
        if cache is None:
            return k, v
        if is_memory:
            cache.memory = k, v
            return k, v
        if cache.past is not None:
            k, v = (torch.cat((past, new), dim=2) for past, new in zip(cache.past, (k, v), strict=True))
        cache.past = k, v
        return k, v


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, *, activation: Activation, activation_dropout: float, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]
        self.activation_dropout, self.dropout = Dropout(activation_dropout), Dropout(dropout)

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
        activation: Activation,
        norm_eps: float,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        drop_path: float,
        layer_scale: float,
        key_bias: bool,
        implementation: str,
        causal: bool = False,
        cross_attention: bool = False,
    ):
        super().__init__()
        self.pre_norm, self.drop_path = pre_norm, drop_path
        attention = partial(
            Attention, width, heads, dropout=attention_dropout, key_bias=key_bias, implementation=implementation
        )
        self.attn = attention(causal=causal)
        self.attn_dropout = Dropout(dropout)
        self.attn_norm = nn.LayerNorm(width, eps=norm_eps)
        if cross_attention:
            self.cross_attn, self.cross_norm = attention(causal=False), nn.LayerNorm(width, eps=norm_eps)
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
        memory: tuple[Tensor, Packing] | None = None,
        cache: LayerCache | None = None,
        keys: Packing | None = None,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor] | None]:
        """(N, D) -> (N, D), and the attention weights when asked for: with a memory a pair, over x and over it."""
        branch, weights = self.attn(
            self.attn_norm(x) if self.pre_norm else x, packing, bias, head_mask, output_attentions, None, cache, keys
        )
        x = x + self.branch(self.attn_dropout(branch), self.attn_scale, packing)
        x = x if self.pre_norm else self.attn_norm(x)
        if memory is not None:
            branch, over_memory = self.cross_attn(
                self.cross_norm(x) if self.pre_norm else x, packing, None, None, output_attentions, memory, cache
            )
            x = x + self.branch(self.attn_dropout(branch), None, packing)
            x = x if self.pre_norm else self.cross_norm(x)
            weights = (weights, over_memory)
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


def skipped_layers(stack: nn.Module) -> Collection[int]:
    """The layers of a stack that LayerDrop leaves out now: those that `skip_layers` chose, or others each time."""
    module: Any = stack
    if not (module.training and module.layerdrop > 0):
        return ()
    if module.skipped is not None:
        return module.skipped
    return (torch.rand(len(module.layers)) < module.layerdrop).nonzero().flatten().tolist()  # on the host


def skip_layers(model: nn.Module, seed: int, step: int) -> None:
    """Choose the layers that LayerDrop leaves out in an update: alike in all its pieces and on all processes.

    Processes that share a block's weights wait for each other there, so all compute it or none does.

    Args:
        model: any.
        seed: of the run.
        step: updates done before.
    """
    chance = random.Random(f"{seed} {step}")
    for module in model.modules():
        if getattr(module, "layerdrop", 0) > 0:
            stack: Any = module
            stack.skipped = {i for i in range(len(stack.layers)) if chance.random() < stack.layerdrop}


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
        self.skipped: Collection[int] | None = None  # see `skip_layers`
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.layers = nn.ModuleList(Block(**block, drop_path=rate) for rate in rates)

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        *,
        biases: Sequence[Tensor | None] | None = None,
        head_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        memory: tuple[Tensor, Packing] | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor | None, ...] | None]:
        """Run the blocks.

        Args:
            x: (N, D).
            packing: where the positions came from.
            biases: each layer's (1, H, T, T) attention bias.
            head_mask: (H,) or (layers, H): each head's output is multiplied by it.
            output_hidden_states: return the input and every layer's output, padded: (B, T, D).
            output_attentions: return every layer's weights (B, H, T, T); with a memory pairs of them and (B, H, T, S).
            memory: another encoder's states, (M, D), and their packing, for cross-attention.
            cache: what the layers keep of earlier positions; those of x are added.

        Returns:
            The last output (N, D), the hidden states, the attention weights; the latter two None unless asked for.
        """
        keys = None if cache is None else cache.read(packing, x.device)
        skipped = skipped_layers(self)
        again = self.gradient_checkpointing and cache is None  # a cache would be given the same positions again
        hidden_states = [packing.unpack(x)] if output_hidden_states else []
        attentions = []
        for i, layer in enumerate(self.layers):
            weights = None
            if i not in skipped:
                bias = None if biases is None else biases[i]
                heads = head_mask if head_mask is None or head_mask.ndim == 1 else head_mask[i]
                run = partial(checkpoint, layer, use_reentrant=False) if again else layer
                kept = None if cache is None else cache.layers[i]
                x, weights = run(x, packing, bias, heads, output_attentions, memory, kept, keys)
            if output_hidden_states:
                hidden_states.append(packing.unpack(x))
            attentions.append(weights)
        return (
            x,
            tuple(hidden_states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )
