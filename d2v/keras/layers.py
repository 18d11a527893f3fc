"""The layers of the image models on Keras 3. A layer's name is its place in a checkpoint's names of weights, with a
hyphen for a dot, which PyTorch does not take.

Shapes: B batch, P patches, L = 1 + P, D width, H heads, K width of a head. A grid is its (rows, columns). Heights and
widths are known when a graph is made; the batch need not be.
"""

import keras
import numpy as np
from keras import layers, ops

from d2v.errors import InputError
from d2v.keras.interpolation import bicubic, resample
from d2v.models.configuration import Activation, Data2VecVisionConfig, Grid, sides
from d2v.models.tables import offset_grid

ACTIVATIONS: dict[Activation, object] = {
    "gelu": lambda x: keras.activations.gelu(x, approximate=False),
    "gelu_new": lambda x: keras.activations.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: keras.activations.gelu(x, approximate=True),
    "relu": keras.activations.relu,
    "selu": keras.activations.selu,
    "silu": keras.activations.silu,
    "swish": keras.activations.silu,
    "tanh": keras.activations.tanh,
}


class Part(layers.Layer):
    """A layer made from the model's configuration; `build` makes and builds its own layers."""

    def __init__(self, config: Data2VecVisionConfig, **options):
        super().__init__(**options)
        self.config = config

    def dense(self, width: int, units: int, name: str, use_bias: bool = True) -> layers.Dense:
        """A linear layer, built."""
        layer = layers.Dense(
            units, use_bias=use_bias, kernel_initializer=normal(self.config), name=name, dtype=self.dtype_policy
        )
        layer.build((None, width))
        return layer

    def norm(self, name: str) -> "LayerNorm":
        """A norm of the model's width, built."""
        layer = LayerNorm(self.config, name=name, dtype=self.dtype_policy)
        layer.build()
        return layer


def normal(config: Data2VecVisionConfig) -> keras.Initializer:
    """What new weights are drawn from."""
    return keras.initializers.RandomNormal(stddev=config.initializer_range)


def at_least_fp32(x):
    """16-bit numbers as fp32, others as they are."""
    return ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) in ("float16", "bfloat16") else x


class LayerNorm(Part):
    """Keras's own takes the variance as a difference of squares on two backends, which loses digits."""

    def build(self, input_shape=None):
        """Make the weights."""
        shape = (self.config.hidden_size,)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")

    def call(self, x):
        """(..., D) -> (..., D)"""
        wide = at_least_fp32(x)
        wide = wide - ops.mean(wide, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(wide), axis=-1, keepdims=True)
        wide = wide * ops.rsqrt(variance + self.config.layer_norm_eps)
        return ops.cast(wide, x.dtype) * self.gamma + self.beta


class Embeddings(Part):
    """A class token, and every patch through one linear layer, with positions if the model has them."""

    def build(self, input_shape=None):
        """Make the weights."""
        config, width = self.config, self.config.hidden_size
        rows, columns = config.grid()
        self.patch = sides(config.patch_size)
        token = (1, 1, width)
        self.cls_token = self.add_weight(shape=token, initializer="zeros", name="cls_token")
        self.mask_token = self.position_embeddings = None
        if config.use_mask_token:
            self.mask_token = self.add_weight(shape=token, initializer="zeros", name="mask_token")
        if config.use_absolute_position_embeddings:
            self.position_embeddings = self.add_weight(
                shape=(1, 1 + rows * columns, width), initializer="zeros", name="position_embeddings"
            )
        name = "patch_embeddings-projection"
        self.kernel = self.add_weight(
            shape=(*self.patch, config.num_channels, width), initializer=normal(config), name=f"{name}-kernel"
        )
        self.bias = self.add_weight(shape=(width,), initializer="zeros", name=f"{name}-bias")
        self.dropout = layers.Dropout(config.hidden_dropout_prob, dtype=self.dtype_policy)

    def call(self, pixel_values, bool_masked_pos=None):
        """Images (B, channels, height, width) to (B, 1 + P, D); less than a patch at an edge is not seen."""
        rows, columns = self.config.grid(tuple(pixel_values.shape[2:]))
        (height, width), channels, size = self.patch, self.config.num_channels, self.config.hidden_size
        x = pixel_values[:, :, : rows * height, : columns * width]
        x = ops.reshape(x, (-1, channels, rows, height, columns, width))
        x = ops.reshape(ops.transpose(x, (0, 2, 4, 3, 5, 1)), (-1, rows * columns, height * width * channels))
        x = ops.matmul(x, ops.reshape(self.kernel, (-1, size))) + self.bias  # (B, P, D)
        if bool_masked_pos is not None:
            x = ops.where(ops.cast(bool_masked_pos, "bool")[:, :, None], ops.cast(self.mask_token, x.dtype), x)
        first = ops.zeros_like(x[:, :1]) + self.cls_token
        x = ops.concatenate((first, x), axis=1)
        if self.position_embeddings is not None:
            x = x + resize_positions(self.position_embeddings, self.config.grid(), (rows, columns))
        return self.dropout(x)


def resize_positions(positions, old: Grid, new: Grid):
    """Absolute positions (1, 1 + P, D) for another grid, by bicubic interpolation; the class token's stays."""
    positions = ops.convert_to_tensor(positions)
    if old == new:
        return positions
    patches = ops.reshape(positions[:, 1:], (1, *old, positions.shape[-1]))
    patches = ops.reshape(resample(patches, new, bicubic), (1, -1, positions.shape[-1]))
    return ops.concatenate((positions[:, :1], patches), axis=1)


def offset_index(grid: Grid) -> np.ndarray:
    """(1 + P, 1 + P): which row of a table each query and key have; see `d2v.models.patches`."""
    (rows, columns), (down, right) = grid, offset_grid(grid)
    i, j = np.divmod(np.arange(rows * columns), columns)
    index = np.full((1 + rows * columns,) * 2, down * right + 1)
    index[1:, 1:] = (i[:, None] - i + rows - 1) * right + j[:, None] - j + columns - 1  # from key to query
    index[0] = down * right
    index[0, 0] = down * right + 2
    return index


class RelativePositionBias(Part):
    """What attention adds to the score of two positions for the way between them, learnt for each head (BEiT)."""

    def build(self, input_shape=None):
        """Make the table: a row an offset between patches, and three for the class token."""
        rows, columns = offset_grid(self.config.grid())
        shape = (rows * columns + 3, self.config.num_attention_heads)
        self.table = self.add_weight(shape=shape, initializer="zeros", name="relative_position_bias_table")

    def call(self, x, grid: Grid):
        """(1, H, L, L) for patches on a grid; bilinear where it is not the model's."""
        table, heads = ops.convert_to_tensor(self.table), self.config.num_attention_heads
        if grid != self.config.grid():
            offsets = ops.reshape(table[:-3], (1, *offset_grid(self.config.grid()), heads))
            offsets = ops.reshape(resample(offsets, offset_grid(grid)), (-1, heads))
            table = ops.concatenate((offsets, table[-3:]), axis=0)
        index = offset_index(grid)
        # Heads first: TensorFlow's gradient of the other way is sparse, which few optimisers take.
        bias = ops.take(ops.transpose(table), index.flatten(), axis=1)
        return ops.reshape(bias, (1, heads, *index.shape))


class Attention(Part):
    """Multi-head attention of all positions over all."""

    def build(self, input_shape=None):
        """Make the layers."""
        config, width = self.config, self.config.hidden_size
        if width % config.num_attention_heads:
            raise InputError(
                f"hidden_size {width} is not a multiple of num_attention_heads {config.num_attention_heads}"
            )
        self.query = self.dense(width, width, "attention-query")
        self.key = self.dense(width, width, "attention-key", use_bias=False)
        self.value = self.dense(width, width, "attention-value")
        self.out = self.dense(width, width, "output-dense")
        self.dropout = layers.Dropout(config.attention_probs_dropout_prob, dtype=self.dtype_policy)
        self.bias = None
        if config.use_relative_position_bias:
            name = "attention-relative_position_bias"
            self.bias = RelativePositionBias(config, name=name, dtype=self.dtype_policy)
            self.bias.build()

    def call(self, x, bias=None, head_mask=None, grid: Grid = (0, 0)):
        """(B, L, D) to the same and the weights (B, H, L, L); `head_mask` (H,) is a factor of each head's."""
        length, heads = x.shape[1], self.config.num_attention_heads
        shape = (-1, length, heads, self.config.hidden_size // heads)
        q, k, v = (ops.reshape(layer(x), shape) for layer in (self.query, self.key, self.value))
        q = ops.transpose(q, (0, 2, 1, 3)) * shape[-1] ** -0.5  # (B, H, L, K)
        scores = ops.matmul(q, ops.transpose(k, (0, 2, 3, 1)))
        if self.bias is not None:
            scores = scores + self.bias(x, grid=grid)
        if bias is not None:
            scores = scores + bias
        weights = self.dropout(ops.cast(ops.softmax(at_least_fp32(scores), axis=-1), x.dtype))
        if head_mask is not None:
            weights = weights * head_mask[:, None, None]
        context = ops.transpose(ops.matmul(weights, ops.transpose(v, (0, 2, 1, 3))), (0, 2, 1, 3))
        return self.out(ops.reshape(context, (-1, length, self.config.hidden_size))), weights


class Block(Part):
    """Attention and feed-forward, each after a norm, with LayerScale and DropPath on each branch, as BEiT."""

    def __init__(self, config: Data2VecVisionConfig, drop_path: float, **options):
        super().__init__(config, **options)
        self.drop_path = drop_path

    def build(self, input_shape=None):
        """Make the layers."""
        config, width = self.config, self.config.hidden_size
        self.attention = Attention(config, name="attention", dtype=self.dtype_policy)
        self.attention.build()
        self.before, self.after = self.norm("layernorm_before"), self.norm("layernorm_after")
        self.fc1 = self.dense(width, config.intermediate_size, "intermediate-dense")
        self.fc2 = self.dense(config.intermediate_size, width, "output-dense")
        self.lambda_1 = self.lambda_2 = None
        if config.layer_scale_init_value > 0:
            self.lambda_1, self.lambda_2 = (
                self.add_weight(
                    shape=(width,),
                    initializer=keras.initializers.Constant(config.layer_scale_init_value),
                    name=f"lambda_{i}",
                )
                for i in (1, 2)
            )
        self.dropout = layers.Dropout(config.hidden_dropout_prob, dtype=self.dtype_policy)
        # Whole rows are dropped, and the kept ones scaled up.
        self.drop = layers.Dropout(self.drop_path, noise_shape=(None, 1, 1), dtype=self.dtype_policy)

    def call(self, x, bias=None, head_mask=None, grid: Grid = (0, 0)):
        """(B, L, D) to the same and the attention weights (B, H, L, L)."""
        branch, weights = self.attention(self.before(x), bias=bias, head_mask=head_mask, grid=grid)
        x = x + self.drop(self.scale(self.dropout(branch), self.lambda_1))
        branch = self.fc2(ACTIVATIONS[self.config.hidden_act](self.fc1(self.after(x))))  # type: ignore[operator]
        return x + self.drop(self.scale(self.dropout(branch), self.lambda_2)), weights

    @staticmethod
    def scale(branch, by):
        """LayerScale, if the model has it."""
        return branch if by is None else branch * by


class Encoder(Part):
    """The blocks, and the table of positions that they may share."""

    def build(self, input_shape=None):
        """Make the layers."""
        config, depth = self.config, self.config.num_hidden_layers
        self.bias = None
        if config.use_shared_relative_position_bias:
            self.bias = RelativePositionBias(config, name="relative_position_bias", dtype=self.dtype_policy)
            self.bias.build()
        rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.layer = [Block(config, rate, name=f"layer-{i}", dtype=self.dtype_policy) for i, rate in enumerate(rates)]
        for block in self.layer:
            block.build()

    def call(self, x, head_mask=None, grid: Grid = (0, 0)):
        """(B, L, D) to all hidden states, the input first, and all attention weights."""
        bias = None if self.bias is None else self.bias(x, grid=grid)
        states, attentions = [x], []
        for i, block in enumerate(self.layer):
            heads = head_mask if head_mask is None or len(head_mask.shape) == 1 else head_mask[i]
            x, weights = block(x, bias=bias, head_mask=heads, grid=grid)
            states.append(x)
            attentions.append(weights)
        return tuple(states), tuple(attentions)


class MainLayer(Part):
    """Images to contextual patches: the model without a head."""

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False, **options):
        super().__init__(config, **options)
        self.add_pooling_layer = add_pooling_layer

    def build(self, input_shape=None):
        """Make the layers."""
        config = self.config
        self.embeddings = Embeddings(config, name="embeddings", dtype=self.dtype_policy)
        self.encoder = Encoder(config, name="encoder", dtype=self.dtype_policy)
        self.embeddings.build()
        self.encoder.build()
        self.layernorm = None if config.use_mean_pooling else self.norm("layernorm")
        self.pooler = self.norm("pooler-layernorm") if self.add_pooling_layer and config.use_mean_pooling else None

    def call(self, pixel_values, bool_masked_pos=None, head_mask=None, training=None):
        """Images (B, channels, height, width) to the last state, the pooled one or None, all states, all attentions."""
        x = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        grid = self.config.grid(tuple(pixel_values.shape[2:]))
        states, attentions = self.encoder(x, head_mask=head_mask, grid=grid)
        last = states[-1] if self.layernorm is None else self.layernorm(states[-1])
        pooled = None
        if self.add_pooling_layer:
            pooled = last[:, 0] if self.pooler is None else self.pooler(ops.mean(last[:, 1:], axis=1))
        return last, pooled, states, attentions


class BatchNorm(Part):
    """Over a batch's pixels, with running statistics as PyTorch keeps them: of the variance over n - 1."""

    momentum, epsilon = 0.1, 1e-5  # torch.nn.BatchNorm2d's

    def __init__(self, config: Data2VecVisionConfig, width: int, **options):
        super().__init__(config, **options)
        self.width = width

    def build(self, input_shape=None):
        """Make the weights."""
        shape = (self.width,)
        self.gamma = self.add_weight(shape=shape, initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")
        statistics = {"trainable": False, "autocast": False}
        self.mean = self.add_weight(shape=shape, initializer="zeros", name="moving_mean", **statistics)
        self.variance = self.add_weight(shape=shape, initializer="ones", name="moving_variance", **statistics)
        self.count = self.add_weight(
            shape=(), initializer="zeros", name="num_batches_tracked", dtype="int32", trainable=False
        )

    def call(self, x, training=False):
        """(B, height, width, D) -> the same."""
        wide = at_least_fp32(x)
        mean, variance = (ops.cast(each, wide.dtype) for each in (self.mean, self.variance))
        if training and self.trainable:
            n = ops.cast(ops.size(wide), wide.dtype) / self.width
            several = n > 1  # else there is no variance, see d2v/models/normalisation.py
            mean = ops.where(several, ops.mean(wide, axis=(0, 1, 2)), mean)
            variance = ops.where(several, ops.mean(ops.square(wide - mean), axis=(0, 1, 2)), variance)
            unbiased = variance * n / ops.maximum(n - 1, 1)
            for running, value in ((self.mean, mean), (self.variance, unbiased)):
                moved = running * (1 - self.momentum) + ops.cast(value, running.dtype) * self.momentum
                running.assign(ops.where(several, moved, running))
            self.count.assign(self.count + ops.cast(several, self.count.dtype))
        wide = (wide - mean) * ops.rsqrt(variance + self.epsilon)
        return ops.cast(wide, x.dtype) * self.gamma + self.beta


def channels_first(x):
    """(B, height, width, D) -> (B, D, height, width)"""
    return ops.transpose(x, (0, 3, 1, 2))


def channels_last(x):
    """(B, D, height, width) -> (B, height, width, D)"""
    return ops.transpose(x, (0, 2, 3, 1))
