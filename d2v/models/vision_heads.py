"""Vision models with a head.

Shapes: B batch, P patches, D width, C classes, h and w of a map. A grid is its (rows, columns).
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v import losses
from d2v.devices import moved
from d2v.errors import InputError
from d2v.models.base import check_labels, classification_loss
from d2v.models.normalisation import BatchNorm2d
from d2v.models.outputs import HeadOutput, SegmentationOutput
from d2v.models.vision import Data2VecVisionConfig, Data2VecVisionModel, VisionPreTrainedModel
from d2v.pretrained import Renames


class Data2VecVisionForImageClassification(VisionPreTrainedModel):
    """A linear layer over the pooled patches, or over the class token; without classes these themselves."""

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__(config)
        self.data2vec_vision = Data2VecVisionModel(config, add_pooling_layer=True)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
    ) -> HeadOutput | tuple:
        """Logits over the classes, and the loss that fits the labels.

        Args:
            pixel_values, head_mask, output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict: as
                in `Data2VecVisionModel.forward`.
            labels: as `d2v.losses.classification` takes them.

        Raises:
            ValueError: labels are no classes or of the wrong shape, or the input is wrong as in
                `Data2VecVisionModel.forward`.
        """
        base = self.data2vec_vision(
            pixel_values,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(base.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        output = HeadOutput(loss, logits, base.hidden_states, base.attentions)
        return output if return_dict else output.to_tuple()


def conv_layer(channels: int, width: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    return nn.Sequential(
        OrderedDict(
            convolution=nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
            normalization=BatchNorm2d(width),
            activation=nn.ReLU(),
        )
    )


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, D, h, w) at another size."""
    return F.interpolate(x, size=size, mode="bilinear")


class Upsampling(nn.ConvTranspose2d):
    """A transposed convolution whose stride is its kernel, as one product: each position becomes a square of them.

    With channels last, as they come from the encoder, the gradients of torch's take 2.7 times as long on a CPU.
    """

    def __init__(self, width: int):
        super().__init__(width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # no output size
        """(B, D, h, w) -> (B, D, 2 * h, 2 * w)"""
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * D, D)
        bias = None if self.bias is None else self.bias.repeat(4)
        y = F.linear(x.permute(0, 2, 3, 1), weight, bias).unflatten(3, (2, 2, -1))  # (B, h, w, 2, 2, D)
        return y.transpose(2, 3).flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


def taps(old: int, new: int, like: Tensor) -> Tensor:
    """(3, new, old): what each tap of a kernel of 3 makes of a line that is resized, with a zero at both ends."""
    line = F.interpolate(torch.eye(old, dtype=like.dtype, device=like.device)[None], size=new, mode="linear")[0]
    return F.pad(line, (1, 1)).unfold(1, new, 1).permute(1, 2, 0)


def conv_of_resized(layer: nn.Sequential, maps: Sequence[Tensor]) -> Tensor:
    """A `conv_layer` with kernel 3 over maps (B, D, h, w), resized to the first one's size and concatenated.

    Convolution and interpolation are both linear: one mixes channels, and in space both are sums of neighbours. So the
    channels of a small map are mixed at its own size, of which UPerNet's maps have 4, 16 and 64 times fewer positions,
    and what is left to do at the large size is a product of matrices along each axis. At 512 pixels that saves two
    fifths of all that the model computes.
    """
    large, *small = maps
    weight: Tensor = layer.get_submodule("convolution").weight  # type: ignore[assignment]  # a parameter
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    rows, lines = [], []
    for x, own in zip(small, weights[1:], strict=True):
        down, across = (taps(old, new, x) for old, new in zip(x.shape[2:], large.shape[2:], strict=True))
        across = across.permute(1, 2, 0).flatten(1).expand(len(x) * x.shape[2], -1, -1)  # (B * h, W, w * 3)
        for tap, kernel in enumerate(own.unbind(2)):  # (D', D, 3)
            mixed = x.permute(0, 2, 3, 1) @ kernel.permute(1, 2, 0).flatten(1)  # (B, h, w, 3 * D')
            line = across @ mixed.unflatten(3, (3, -1)).flatten(2, 3).flatten(0, 1)  # (B * h, W, D')
            lines.append(line.unflatten(0, (len(x), -1)).flatten(2))
            rows.append(down[tap])
    y = torch.cat(rows, dim=1).expand(len(large), -1, -1) @ torch.cat(lines, dim=1)  # (B, H, W * D')
    y = y.unflatten(2, (large.shape[3], -1)).permute(0, 3, 1, 2)
    return layer[1:](F.conv2d(large, weights[0], padding=1) + y)


class UperHead(nn.Module):
    """UPerNet (Xiao et al., 2018): the coarsest map sees the whole image, then each finer one is added to it."""

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__()
        width, self.pool_scales = config.hidden_size, config.pool_scales
        self.psp_modules = nn.ModuleList(conv_layer(width, width, 1) for _ in self.pool_scales)
        self.psp_bottleneck = conv_layer((1 + len(self.pool_scales)) * width, width, 3)
        self.lateral_convs = nn.ModuleList(conv_layer(width, width, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(conv_layer(width, width, 3) for _ in range(3))
        self.fpn_bottleneck = conv_layer(4 * width, width, 3)
        self.classifier = nn.Conv2d(width, config.num_labels, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps (B, D, h, w), the finest first, to logits (B, C, h, w) of the finest's size."""
        *finer, coarsest = maps
        pooled = [
            conv(F.adaptive_avg_pool2d(coarsest, scale))
            for scale, conv in zip(self.pool_scales, self.psp_modules, strict=True)
        ]
        below = conv_of_resized(self.psp_bottleneck, [coarsest, *pooled])
        outputs = [below]
        for i in (2, 1, 0):
            below = self.lateral_convs[i](finer[i]) + resize(below, finer[i].shape[2:])
            outputs.append(self.fpn_convs[i](below))
        return self.classifier(conv_of_resized(self.fpn_bottleneck, outputs[::-1]))


class FCNHead(nn.Module):
    """Convolutions and a classifier over one map (Long et al., 2015)."""

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__()
        widths = [config.hidden_size] + [config.auxiliary_channels] * config.auxiliary_num_convs
        self.convs = nn.Sequential(*(conv_layer(*pair, 3) for pair in pairwise(widths)))
        self.conv_cat = None
        if config.auxiliary_concat_input:
            self.conv_cat = conv_layer(widths[0] + widths[-1], config.auxiliary_channels, 3)
            widths.append(config.auxiliary_channels)
        self.classifier = nn.Conv2d(widths[-1], config.num_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, C, h, w)"""
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat((x, y), dim=1))
        return self.classifier(y)


class Data2VecVisionForSemanticSegmentation(VisionPreTrainedModel):
    """A class for each pixel: UPerNet over four layers' outputs, with a second head that helps in training.

    `config.out_indices` counts as Hugging Face does: 1 is the embeddings, 2 the first layer's output, and so on. BEiT's
    3, 5, 7, 11 are layers counted from 0, and so (5, 7, 9, 13) here; the default (3, 5, 7, 11) takes its 1, 3, 5, 9.
    """

    renames: ClassVar[Renames] = (
        *VisionPreTrainedModel.renames,
        ("decode_head.psp_modules.*.", "decode_head.psp_modules.blocks.*.conv."),
    )

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__(config)
        known = range(1, config.num_hidden_layers + 2)
        if len(set(config.out_indices)) != 4 or not set(config.out_indices) <= set(known):
            raise InputError(f"out_indices should be four different ones of 1 to {known[-1]}, not {config.out_indices}")
        width = config.hidden_size
        self.data2vec_vision = Data2VecVisionModel(config)
        self.fpn1 = nn.Sequential(
            Upsampling(width),
            nn.BatchNorm2d(width),
            nn.GELU(),
            Upsampling(width),
        )
        self.fpn2 = nn.Sequential(Upsampling(width))
        self.decode_head = UperHead(config)
        self.auxiliary_head = FCNHead(config) if config.use_auxiliary_head else None
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
    ) -> SegmentationOutput | tuple:
        """Logits over the classes on a grid four times as fine as the patches', and the loss.

        Args:
            pixel_values, head_mask, output_attentions, output_hidden_states, interpolate_pos_encoding, return_dict: as
                in `Data2VecVisionModel.forward`; at least two rows and two columns of patches.
            labels: (B, height, width) class numbers, `config.semantic_loss_ignore_index` where nothing counts.

        Raises:
            ValueError: labels are no classes or of the wrong shape, the image is a single row or column of patches, or
                the input is wrong as in `Data2VecVisionModel.forward`.
        """
        if labels is not None:
            self.check_labels(labels, len(pixel_values))
        base = self.data2vec_vision(
            pixel_values, head_mask=head_mask, output_attentions=output_attentions, output_hidden_states=True
        )
        height, width = pixel_values.shape[2:]
        grid = self.config.grid((height, width))
        if min(grid) < 2:
            raise ValueError(f"segmentation takes at least 2 x 2 patches; the images have {grid[0]} x {grid[1]}")
        states = [base.hidden_states[index - 1] for index in sorted(self.config.out_indices)]
        maps = [state[:, 1:].mT.unflatten(2, grid) for state in states]  # (B, D, rows, columns)
        maps = [self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], F.max_pool2d(maps[3], 2)]
        logits, auxiliary_logits, loss = self.decode_head(maps), None, None
        if self.auxiliary_head is not None and (self.training or labels is not None):
            auxiliary_logits = self.auxiliary_head(maps[2])
        if labels is not None:
            total, count = segmentation_loss(logits, auxiliary_logits, labels, self.config)
            loss = total / count.clamp(min=1)  # 0, not NaN, where no pixel counts
        hidden_states = base.hidden_states if output_hidden_states else None
        output = SegmentationOutput(loss, logits, hidden_states, base.attentions, auxiliary_logits)
        return output if return_dict else output.to_tuple()

    def check_labels(self, labels: Tensor, batch: int) -> None:
        """Raise ValueError unless labels are (B, height, width), classes or ignored; compiled code trusts."""
        if self.config.num_labels < 2:
            raise ValueError(f"segmentation takes at least 2 classes to learn; num_labels is {self.config.num_labels}")
        if labels.ndim != 3:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; should be (B, height, width)")
        counted = labels.masked_fill(labels == self.config.semantic_loss_ignore_index, 0)
        check_labels(counted, (batch, *labels.shape[1:]), self.config.num_labels)
        if not torch.compiler.is_compiling() and counted.numel() and counted.min() < 0:
            raise ValueError(f"label {int(counted.min())} is outside the {self.config.num_labels} classes")


def segmentation_loss(
    logits: Tensor, auxiliary_logits: Tensor | None, labels: Tensor, config: Data2VecVisionConfig
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel, the auxiliary head's weighted and added.

    Args:
        logits, auxiliary_logits: (B, C, h, w) of any size, interpolated to the labels' size.
        labels: (B, height, width), `config.semantic_loss_ignore_index` where nothing counts.
        config: has the weight.

    Returns:
        Sum over pixels and how many count.
    """
    ignore, labels = config.semantic_loss_ignore_index, moved(labels, logits.device)
    total, count = losses.cross_entropy(resize(losses.at_least_fp32(logits), labels.shape[1:]), labels, ignore=ignore)
    if auxiliary_logits is not None:
        resized = resize(losses.at_least_fp32(auxiliary_logits), labels.shape[1:])
        total = total + config.auxiliary_loss_weight * losses.cross_entropy(resized, labels, ignore=ignore)[0]
    return total, count
