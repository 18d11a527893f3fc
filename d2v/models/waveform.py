"""The convolutions of the audio models: from the waveform to frames, their positions, and adapters after the encoder.

A padded batch of clips is never computed as such. The clips are laid one after another on a single long waveform, and
later, with gaps, on a single row of frames, so that no convolution works on padding and none sees a neighbour: a clip's
output does not depend on what it is batched with. Channels come last; norms and activations then work on contiguous
memory.

Shapes: B batch, S samples, T frames, N real frames of a batch, D width, C channels, k kernel size.
"""

import math
from collections.abc import Iterator
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.models.cpu import Dropout, filler
from d2v.models.packing import Packing
from d2v.models.transformer import ACTIVATIONS


def conv_channels_last(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1-d convolution of (B, T, C), contiguous in and out: as a 2-d one of height 1, whose channels may come last."""
    image = x.transpose(1, 2).unsqueeze(2)  # (B, C, 1, T), stored as (B, 1, T, C)
    image = F.conv2d(
        image,
        conv.weight.unsqueeze(2),
        conv.bias,
        stride=(1, *conv.stride),
        padding=(0, *conv.padding),
        groups=conv.groups,
    )
    return image.squeeze(2).transpose(1, 2)


class StridedConv(torch.autograd.Function):
    """A convolution of one long row, (T, C) to (T', C'), as matrix products that copy nothing.

    `stride` neighbouring frames are contiguous, so they are the rows of a matrix that already lies in memory; a kernel
    longer than the stride takes one more product for each further `stride` taps. On a CPU this trains about twice as
    fast as a convolution, forward and backward.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """X (T, C), weight (C', C, k) -> (T', C')"""
        frames = (len(x) - weight.shape[2]) // stride + 1
        (window, taps), *rest = list(StridedConv.products(x, weight, stride, frames, copy=x.shape[1] == 1))
        y = window @ taps
        for window, taps in rest:
            y.addmm_(window, taps)
        return y

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        """Keep what gradients need; by itself, as torch.func asks for."""
        x, weight, ctx.stride = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of x and of weight."""
        (x, weight), grad, grad_x, grad_weight = ctx.saved_tensors, grad.contiguous(), None, None
        if ctx.needs_input_grad[0]:
            grad_x = torch.zeros_like(x)
            for window, taps in StridedConv.products(grad_x, weight, ctx.stride, len(grad)):
                window.addmm_(grad, taps.T)
        if ctx.needs_input_grad[1]:
            products = StridedConv.products(x, weight, ctx.stride, len(grad), copy=x.shape[1] == 1)
            grad_weight = torch.cat([window.T @ grad for window, _ in products])  # (k * C, C')
            grad_weight = grad_weight.unflatten(0, weight.shape[:0:-1]).permute(2, 1, 0)
        return grad_x, grad_weight, None

    @staticmethod
    def products(
        x: Tensor, weight: Tensor, stride: int, frames: int, copy: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of (frames, taps * C) views of x and the (taps * C, C') weights they are multiplied by.

        With `copy` there is one pair, whose overlapping view a product has to copy first: cheaper for the waveform,
        where several products of a few columns each would be slow.
        """
        channels, kernel = x.shape[1], weight.shape[2]
        taps = weight.permute(2, 1, 0).flatten(0, 1)  # (k * C, C')
        for first in range(0, kernel, kernel if copy else stride):
            last = kernel if copy else min(first + stride, kernel)
            shape, strides = (frames, (last - first) * channels), (stride * channels, 1)
            offset = x.storage_offset() + first * channels
            yield x.as_strided(shape, strides, offset), taps[first * channels : last * channels]


class ConvLayer(nn.Module):
    """Convolution, LayerNorm over channels, activation."""

    def __init__(self, config, index: int):
        super().__init__()
        before = config.conv_dim[index - 1] if index else 1
        kernel, self.stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(before, config.conv_dim[index], kernel, self.stride, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.conv_dim[index])
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T', C')"""
        weight, device = self.conv.weight, x.device.type
        if torch.is_autocast_enabled(device):
            x, weight = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (x, weight))
        if torch.jit.is_tracing():  # which cannot save a function of ours
            x = F.conv1d(x.T, weight, stride=self.stride).T
        else:
            x = StridedConv.apply(x.contiguous(), weight, self.stride)
        return self.activation(self.layer_norm(x if self.conv.bias is None else x + self.conv.bias))


class FeatureEncoder(nn.Module):
    """The waveform front end: seven strided convolutions, one frame every 20 ms."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.conv_layers = nn.ModuleList(ConvLayer(config, i) for i in range(len(config.conv_dim)))

    def forward(self, input_values: Tensor, samples: list[int]) -> Tensor:
        """Features of the real frames.

        Args:
            input_values: (B, S).
            samples: real samples of each row.

        Returns:
            (N, C), row after row.
        """
        # Each clip begins at a multiple of the hop, so its frames are those it would have alone, and lie apart from the
        # ones that overlap two clips, which are left out at the end.
        hop = self.config.inputs_to_logits_ratio
        slots = [math.ceil(n / hop) * hop for n in samples]
        slots[-1] += hop * filler(sum(slots) // hop, input_values)
        clips = [F.pad(row[:n], (0, slot - n)) for row, n, slot in zip(input_values, samples, slots, strict=True)]
        x = torch.cat(clips)[:, None]  # (S', 1)
        for layer in self.conv_layers:
            x = layer(x)
        starts = [start // hop for start in accumulate(slots, initial=0)]
        frames = [self.config.frames(n, adapter=False) for n in samples]
        return torch.cat([x[start : start + n] for start, n in zip(starts, frames, strict=False)])


class FeatureProjection(nn.Module):
    """LayerNorm and linear map from the front end's channels to the encoder's width; its dropout is `mask`'s."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)
        self.dropout = Dropout(config.feat_proj_dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) -> hidden states (N, D) and normalised features (N, C)."""
        normed = self.layer_norm(x)
        return self.projection(normed), normed


class PositionalConvLayer(nn.Module):
    """Grouped convolution that keeps the length, LayerNorm without parameters, activation."""

    def __init__(self, config):
        super().__init__()
        width, kernel, groups = config.hidden_size, config.conv_pos_kernel_size, config.num_conv_pos_embedding_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.layer_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        # An even kernel gives one frame too many.
        return self.activation(self.layer_norm(conv_channels_last(x, self.conv)[:, : x.shape[1]]))


class PositionalConvEmbedding(nn.Module):
    """Positions relative to the neighbours: a stack of convolutions over the frames."""

    def __init__(self, config):
        super().__init__()
        self.gap = config.conv_pos_kernel_size // 2
        self.layers = nn.ModuleList(PositionalConvLayer(config) for _ in range(config.num_conv_pos_embeddings))

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        """(N, D) -> (N, D)"""
        if packing.indices is None:
            rows = packing.unpack(x)
            for layer in self.layers:
                rows = layer(rows)
            return packing.pack(rows)
        # All clips on one row with a gap of zeros after each, as wide as a kernel reaches: what a clip alone would see.
        clip = torch.arange(packing.batch, device=x.device)
        x = packing.trim(x)
        places = torch.arange(len(x), device=x.device) + self.gap * packing.trim(packing.spread(clip))
        size = len(x) + self.gap * packing.batch
        size += filler(size, x)
        row = x.new_zeros(size, x.shape[1]).index_copy(0, places, x)[None]
        real = torch.zeros(size, 1, dtype=torch.bool, device=x.device).index_fill(0, places, True)
        for layer in self.layers:
            row = layer(row).masked_fill(~real, 0)
        return packing.fill(row[0].index_select(0, places))


class AdapterLayer(nn.Module):
    """Strided convolution with a gated linear unit."""

    def __init__(self, config):
        super().__init__()
        width = config.output_hidden_size
        self.conv = nn.Conv1d(width, 2 * width, config.adapter_kernel_size, config.adapter_stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T', D)"""
        return F.glu(conv_channels_last(x, self.conv), dim=-1)


class Adapter(nn.Module):
    """Shortens the encoder's output, for use before a decoder."""

    def __init__(self, config):
        super().__init__()
        resize = config.output_hidden_size != config.hidden_size
        self.proj = nn.Linear(config.hidden_size, config.output_hidden_size) if resize else None
        self.proj_layer_norm = nn.LayerNorm(config.output_hidden_size) if resize else None
        self.layers = nn.ModuleList(AdapterLayer(config) for _ in range(config.num_adapter_layers))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T', D'), without padding; LayerDrop skips none, since each has its share of the strides."""
        if self.proj is not None and self.proj_layer_norm is not None:
            x = self.proj_layer_norm(self.proj(x))
        for layer in self.layers:
            x = layer(x)
        return x
