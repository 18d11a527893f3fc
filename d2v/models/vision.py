"""data2vec for images: the model that puts patches before the shared encoder.

Shapes: B batch, P patches, N positions of a batch, D width, H heads. A grid is its (rows, columns).
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from d2v.hub import Renames
from d2v.models.base import PreTrainedModel, check_float, init_linear
from d2v.models.configuration import Data2VecVisionConfig, Grid
from d2v.models.cpu import filler
from d2v.models.outputs import VisionModelOutput
from d2v.models.patches import (
    PatchAttention,
    PatchEmbeddings,
    PatchPacking,
    RelativePositionBias,
    offset_index,
    resize_positions,
    resize_table,
)
from d2v.models.tables import offset_grid
from d2v.models.transformer import Encoder

TABLE, POSITIONS = "relative_position_bias.relative_position_bias_table", "embeddings.position_embeddings"


class VisionEncoder(Encoder):
    """The shared encoder with relative positions: one table for all layers, one for each, both or neither."""

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__(
            config.num_hidden_layers,
            drop_path=config.drop_path_rate,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            hidden=config.intermediate_size,
            pre_norm=True,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            activation_dropout=0.0,
            layer_scale=config.layer_scale_init_value,
            key_bias=False,
            implementation=config.attn_implementation,
        )
        self.relative_position_bias = None
        if config.use_shared_relative_position_bias:
            self.relative_position_bias = RelativePositionBias(config.grid(), config.num_attention_heads)
        if config.use_relative_position_bias:
            for layer in self.layers:
                # In the layer, so that it has the layer's learning rate, shard and place in gradient checkpointing.
                layer.attn = PatchAttention(
                    config,
                    dropout=config.attention_probs_dropout_prob,
                    key_bias=False,
                    implementation=config.attn_implementation,
                    causal=False,
                )

    def forward(self, x: Tensor, packing: PatchPacking, **options):  # type: ignore[override]  # patches have a grid
        """As `Encoder.forward`."""
        biases = None
        if self.relative_position_bias is not None:
            biases = [self.relative_position_bias(packing.grid, packing.offsets)] * len(self.layers)
        return super().forward(x, packing, biases=biases, **options)


class Pooler(nn.Module):
    """The patches' normalised mean, or the class token."""

    def __init__(self, config: Data2VecVisionConfig):
        super().__init__()
        self.layernorm = None
        if config.use_mean_pooling:
            self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + P, D) -> (B, D)"""
        return x[:, 0] if self.layernorm is None else self.layernorm(x[:, 1:].mean(1))


class VisionPreTrainedModel(PreTrainedModel):
    """What the vision models share: names, initialisation, loading at another image size."""

    config_class = Data2VecVisionConfig
    config: Data2VecVisionConfig
    base_model: "Data2VecVisionModel"
    base_model_prefix = "data2vec_vision"
    renames: ClassVar[Renames] = (
        ("embeddings.projection.", "embeddings.patch_embeddings.projection."),
        ("encoder.layers.*.attn.q_proj.", "encoder.layer.*.attention.attention.query."),
        ("encoder.layers.*.attn.k_proj.", "encoder.layer.*.attention.attention.key."),
        ("encoder.layers.*.attn.v_proj.", "encoder.layer.*.attention.attention.value."),
        ("encoder.layers.*.attn.out_proj.", "encoder.layer.*.attention.output.dense."),
        (f"encoder.layers.*.attn.{TABLE}", f"encoder.layer.*.attention.attention.{TABLE}"),
        ("encoder.layers.*.attn_norm.", "encoder.layer.*.layernorm_before."),
        ("encoder.layers.*.attn_scale", "encoder.layer.*.lambda_1"),
        ("encoder.layers.*.ffn.fc1.", "encoder.layer.*.intermediate.dense."),
        ("encoder.layers.*.ffn.fc2.", "encoder.layer.*.output.dense."),
        ("encoder.layers.*.ffn_norm.", "encoder.layer.*.layernorm_after."),
        ("encoder.layers.*.ffn_scale", "encoder.layer.*.lambda_2"),
    )

    def init_weights(self) -> None:
        """Normal weights and zero biases, of convolutions too; tokens, positions and tables are zero."""
        for module in self.modules():
            init_linear(module, self.config.initializer_range)
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def adapt_weights(self, weights: dict[str, Tensor], entries: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """Fit a checkpoint's positions: resize those of another grid, give each layer the table that all shared."""
        weights = {name: value for name, value in weights.items() if not name.endswith("relative_position_index")}
        own = {name for name, _ in self.named_parameters()}
        of_layers = [name for name in own if name.endswith(f".attn.{TABLE}")]
        shared = [name for name in weights if name.endswith(f"encoder.{TABLE}") and name not in own]
        if shared and of_layers and not weights.keys() & set(of_layers):  # BEiT pretrains with one, then has one each
            weights |= dict.fromkeys(of_layers, weights.pop(shared[0]))
        new = self.config.grid()
        old = new if entries is None else type(self.config).from_dict(entries).grid()
        for name, value in weights.items() if old != new else ():
            if name.endswith(TABLE) and len(value) == math.prod(offset_grid(old)) + 3:
                weights[name] = resize_table(value, old, new)
            elif name.endswith(POSITIONS) and value.shape[1] == 1 + math.prod(old):
                weights[name] = resize_positions(value, old, new)
        return weights


class Data2VecVisionModel(VisionPreTrainedModel):
    """Images to contextual patches."""

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = PatchEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.layernorm: nn.Module = nn.Identity()
        if not config.use_mean_pooling:
            self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = Pooler(config) if add_pooling_layer else None
        self.init_weights()

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        interpolate_pos_encoding: bool = False,
        return_dict: bool = True,
    ) -> VisionModelOutput | tuple:
        """Encode a batch of images.

        Args:
            pixel_values: (B, channels, height, width) float, normalised; of any size from one patch on.
            bool_masked_pos: (B, P), true at patches to replace by the mask token.
            head_mask: (H,) or (layers, H), a factor for each head's output.
            output_attentions: return attention weights, which takes the eager path in every layer.
            output_hidden_states: return all layers' outputs.
            interpolate_pos_encoding: changes nothing, positions always fit the image; taken for the sake of Hugging
                Face's callers, where it changes nothing either.
            return_dict: False for a tuple of the fields that are set.

        Raises:
            ValueError: the input has the wrong shape or dtype, or the model has no mask token.
        """
        self.check(pixel_values, bool_masked_pos)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            x, grid = self.embeddings(pixel_values, bool_masked_pos)
            packing = self.packing(x, grid)
            x, hidden_states, attentions = self.encoder(
                packing.pack(x),
                packing,
                head_mask=head_mask,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
            x = self.layernorm(packing.unpack(x))
        # Pretraining had no pooler: it is new, as a head is, and learns while the encoder is frozen.
        pooled = None if self.pooler is None else self.pooler(x)
        output = VisionModelOutput(x, pooled, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def packing(self, x: Tensor, grid: Grid) -> PatchPacking:
        """Of embedded images (B, 1 + P, D)."""
        batch, length = x.shape[:2]
        relative = self.config.use_relative_position_bias or self.config.use_shared_relative_position_bias
        offsets = offset_index(grid, x.device) if relative else None
        return PatchPacking(
            batch,
            length,
            lengths=None if torch.compiler.is_compiling() else (length,) * batch,
            filler=filler(batch * length, x),
            grid=grid,
            offsets=offsets,
        )

    def check(self, pixel_values: Tensor, bool_masked_pos: Tensor | None) -> None:
        """Raise ValueError for input of the wrong shape or dtype, or a mask without a mask token."""
        check_float(pixel_values, "pixel_values", 4)
        batch, channels, height, width = pixel_values.shape
        if channels != self.config.num_channels:
            raise ValueError(f"pixel_values have {channels} channels; the model takes {self.config.num_channels}")
        rows, columns = self.config.grid((height, width))
        if rows < 1 or columns < 1:
            raise ValueError(
                f"images of {height} x {width} pixels are smaller than patch_size {self.config.patch_size}"
            )
        if bool_masked_pos is not None:
            if self.embeddings.mask_token is None:
                raise ValueError("bool_masked_pos is for a model with a mask token; set use_mask_token")
            if bool_masked_pos.shape != (batch, rows * columns):
                shape = tuple(bool_masked_pos.shape)
                raise ValueError(f"bool_masked_pos has shape {shape}; should be {(batch, rows * columns)}")
