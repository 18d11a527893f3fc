"""data2vec 2.0's economy (Baevski et al., 2023): several views of a row share the teacher's pass, each seen in part.

The student encodes what a view leaves unmasked and nothing else, as a masked autoencoder does, which packing makes
natural; a few convolutions then fill the gaps. Differences from fairseq's `data2vec_multi`: the gaps hold the mask
embedding, which fine-tuning uses, and not noise; there are no ALiBi, prenet or class loss.

Shapes: B batch, M views, T frames, tokens or patches, N packed positions, D width, H width of the decoder.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v.devices import moved, taken
from d2v.errors import InputError
from d2v.models.audio import packing_of_lengths
from d2v.models.base import PreTrainedModel
from d2v.models.packing import Packing
from d2v.models.transformer import Encoder


class Decoder(nn.Module):
    """Grouped convolutions over rows, or over grids of patches, each with a norm, GELU and from the second a residual.

    Args:
        width: D.
        hidden: H.
        layers: number of convolutions.
        kernel: positions that each sees, of patches in either direction.
        groups: of channels.
        grid: rows and columns of patches; None for rows.
    """

    def __init__(
        self, width: int, hidden: int, *, layers: int, kernel: int, groups: int, grid: tuple[int, int] | None = None
    ):
        super().__init__()
        if width % groups or hidden % groups:
            raise InputError(f"economy.groups {groups} should divide hidden_size {width} and economy.width {hidden}")
        if not kernel % 2:
            raise InputError(f"economy.kernel should be odd, not {kernel}")
        kind: Any = nn.Conv1d if grid is None else nn.Conv2d
        widths = [width, *[hidden] * layers]
        self.convolutions = nn.ModuleList(
            kind(widths[i], widths[i + 1], kernel, padding=kernel // 2, groups=groups) for i in range(layers)
        )
        self.projection, self.grid = nn.Linear(widths[-1], width), grid

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, T, D) to the same; positions that are not `real`, (B, T), are zero for their neighbours."""
        for convolution in self.convolutions:
            x = (x * real[:, :, None]).mT  # (B, channels, T)
            y = convolution(x if self.grid is None else x.unflatten(2, self.grid))
            y = (y if self.grid is None else y.flatten(2)).mT
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = y + x.mT if y.shape == x.mT.shape else y
        return self.projection(x)


def encode_seen(
    model: PreTrainedModel, batch: Mapping[str, Any], final_norm: nn.Module | None
) -> tuple[Tensor, Tensor, Tensor, Packing]:
    """What a model makes of the unmasked part of each view, with the gaps filled by its mask embedding.

    Args:
        model: the student's.
        batch: as `d2v.models.pretraining.views` reads it, but with `masked` (B, M, T), and of text `mask_token`.
        final_norm: behind the last block.

    Returns:
        (B * M, T, D), of images without the class token; (B * M, T) bool, which positions are real; (N, D) and its
        packing, what the encoder would read of whole rows.
    """
    each: Any = model
    kind, masked, first = model.config.model_type, batch["masked"], 0
    if kind == "data2vec-audio":
        front, packing, _ = each.embed(batch["input_values"], batch["attention_mask"])
        embedding = each.masked_spec_embed
    elif kind == "data2vec-text":
        front, packing = each.embed(batch["input_ids"], batch["attention_mask"])
        embedding = each.embeddings.word_embeddings.weight[batch["mask_token"]]
    else:
        if each.config.use_relative_position_bias or each.config.use_shared_relative_position_bias:
            raise InputError(
                "economy.views does not go with relative positions: arch.use_absolute_position_embeddings without "
                "arch.use_relative_position_bias and arch.use_shared_relative_position_bias"
            )
        padded, grid = each.embeddings(batch["pixel_values"])
        packing, first = each.packing(padded, grid), 1
        front, embedding = packing.pack(padded), each.embeddings.mask_token[0, 0]
    whole = packing.unpack(front)  # (B, first + T, D)
    lengths = torch.tensor(packing.known_lengths).repeat_interleave(masked.shape[1])  # (B * M,), on the host
    real = torch.arange(whole.shape[1]) < lengths[:, None]
    x = whole.repeat_interleave(masked.shape[1], 0)  # (B * M, first + T, D)
    hidden = F.pad(masked.flatten(0, 1), (first, 0)).to(real.device)
    if kind == "data2vec-audio":  # positions are convolutions, for which masked frames are silent
        rows = packing_of_lengths(lengths.tolist(), real.shape[1], device=x.device)
        x = each.feature_projection.dropout(x)  # of the student's views, and not of what its teacher hears
        x = rows.pack(x.masked_fill(moved(hidden[:, :, None], x.device), 0))
        x = each.encoder.dropout(each.encoder.layer_norm(x + each.encoder.pos_conv_embed(x, rows)))
        x = rows.unpack(x)
    keep = real & ~hidden
    if not bool(keep.any(1).all()):
        raise ValueError("a view masks all of a row")
    seen = packing_of_lengths(keep.sum(1).tolist(), device=x.device)
    states = Encoder.forward(each.encoder, taken(x, keep), seen)[0]
    states = states if final_norm is None else final_norm(states)
    keep, real = (moved(each, x.device) for each in (keep, real))
    filled = torch.where(real[:, :, None], embedding.to(states.dtype), 0).masked_scatter(keep[:, :, None], states)
    return filled[:, first:], real[:, first:], front, packing
