"""Heads of semantic segmentation on Keras 3: UPerNet, and the one that helps in training.

Maps are (B, height, width, D), since convolutions on a CPU want them so; logits leave as (B, C, height, width).
"""

from itertools import pairwise

from keras import layers, ops

from d2v.keras.interpolation import adaptive_mean, resample
from d2v.keras.layers import BatchNorm, Part, normal


class Convolution(Part):
    """Convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, config, channels: int, width: int, kernel: int, **options):
        super().__init__(config, **options)
        self.channels, self.width, self.kernel = channels, width, kernel

    def build(self, input_shape=None):
        """Make the layers."""
        self.convolution = conv2d(self, self.channels, self.width, self.kernel, "convolution", use_bias=False)
        self.normalization = BatchNorm(self.config, self.width, name="normalization", dtype=self.dtype_policy)
        self.normalization.build()

    def call(self, x):
        """(B, height, width, channels) -> (B, height, width, width)"""
        return ops.relu(self.normalization(self.convolution(x)))


def conv2d(part: Part, channels: int, width: int, kernel: int, name: str, use_bias: bool = True) -> layers.Conv2D:
    """A convolution that keeps the size, built."""
    layer = layers.Conv2D(
        width,
        kernel,
        padding="same",
        data_format="channels_last",
        use_bias=use_bias,
        kernel_initializer=normal(part.config),
        name=name,
        dtype=part.dtype_policy,
    )
    layer.build((None, None, None, channels))
    return layer


def double(part: Part, name: str) -> layers.Conv2DTranspose:
    """A transposed convolution to twice the size, built."""
    width = part.config.hidden_size
    layer = layers.Conv2DTranspose(
        width,
        2,
        strides=2,
        data_format="channels_last",
        kernel_initializer=normal(part.config),
        name=name,
        dtype=part.dtype_policy,
    )
    layer.build((None, None, None, width))
    return layer


def convolution(part: Part, channels: int, width: int, kernel: int, name: str) -> Convolution:
    """`Convolution`, built."""
    layer = Convolution(part.config, channels, width, kernel, name=name, dtype=part.dtype_policy)
    layer.build()
    return layer


class UperHead(Part):
    """UPerNet (Xiao et al., 2018): the coarsest map sees the whole image, then each finer one is added to it."""

    def build(self, input_shape=None):
        """Make the layers."""
        width, scales = self.config.hidden_size, self.config.pool_scales
        self.psp = [convolution(self, width, width, 1, f"psp_modules-blocks-{i}-conv") for i in range(len(scales))]
        self.psp_bottleneck = convolution(self, (1 + len(scales)) * width, width, 3, "psp_bottleneck")
        self.lateral = [convolution(self, width, width, 1, f"lateral_convs-{i}") for i in range(3)]
        self.fpn = [convolution(self, width, width, 3, f"fpn_convs-{i}") for i in range(3)]
        self.fpn_bottleneck = convolution(self, 4 * width, width, 3, "fpn_bottleneck")
        self.classifier = conv2d(self, width, self.config.num_labels, 1, "classifier")

    def call(self, maps):
        """Four maps, the finest first, to logits (B, height, width, C) of the finest's size."""
        *finer, coarsest = maps
        # Each scale pools the coarsest map itself, and not what the scale before made of it.
        pooled = [
            resample(conv(resample(coarsest, (scale, scale), adaptive_mean)), tuple(coarsest.shape[1:3]))
            for scale, conv in zip(self.config.pool_scales, self.psp, strict=True)
        ]
        below = self.psp_bottleneck(ops.concatenate((coarsest, *pooled), axis=-1))
        outputs = [below]
        for i in (2, 1, 0):
            below = self.lateral[i](finer[i]) + resample(below, tuple(finer[i].shape[1:3]))
            outputs.append(self.fpn[i](below))
        size = tuple(maps[0].shape[1:3])
        x = ops.concatenate([resample(x, size) for x in reversed(outputs)], axis=-1)
        return self.classifier(self.fpn_bottleneck(x))


class FCNHead(Part):
    """Convolutions and a classifier over one map (Long et al., 2015)."""

    def build(self, input_shape=None):
        """Make the layers."""
        config = self.config
        widths = [config.hidden_size] + [config.auxiliary_channels] * config.auxiliary_num_convs
        self.convs = [convolution(self, *pair, 3, f"convs-{i}") for i, pair in enumerate(pairwise(widths))]
        self.conv_cat = None
        if config.auxiliary_concat_input:
            self.conv_cat = convolution(self, widths[0] + widths[-1], config.auxiliary_channels, 3, "conv_cat")
            widths.append(config.auxiliary_channels)
        self.classifier = conv2d(self, widths[-1], config.num_labels, 1, "classifier")

    def call(self, x):
        """(B, height, width, D) -> (B, height, width, C)"""
        y = x
        for conv in self.convs:
            y = conv(y)
        if self.conv_cat is not None:
            y = self.conv_cat(ops.concatenate((x, y), axis=-1))
        return self.classifier(y)
