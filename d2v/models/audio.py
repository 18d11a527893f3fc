"""data2vec for speech: its configuration, and the model that puts waveform features before the shared encoder.

Shapes: B batch, S samples, T frames, N real frames of a batch, D width, C channels, H heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from d2v.devices import moved
from d2v.errors import InputError
from d2v.models.base import Config, PreTrainedModel, check_float, init_linear
from d2v.models.cpu import Dropout, filler
from d2v.models.masking import span_mask
from d2v.models.outputs import AudioModelOutput
from d2v.models.packing import Packing
from d2v.models.transformer import Activation, Encoder
from d2v.models.waveform import Adapter, FeatureEncoder, FeatureProjection, PositionalConvEmbedding, PositionalConvLayer
from d2v.pretrained import Renames

Count = TypeVar("Count", int, Tensor)


@dataclass(kw_only=True)
class Data2VecAudioConfig(Config):
    """Configuration of the audio models; the defaults are data2vec audio base's (Baevski et al., 2022, section 4.1).

    Attributes:
        vocab_size: classes of the CTC head, the blank included.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: size of the encoder.
        hidden_dropout, activation_dropout, attention_dropout: after each branch and the positions, inside the
            feed-forward, and on the attention weights.
        feat_proj_dropout: after the projection of the waveform features.
        final_dropout: before the CTC head.
        layerdrop: chance that a layer is skipped in training.
        layer_norm_eps: of the encoder's norms.
        feat_extract_activation: activation of the front end and the positions.
        conv_dim, conv_stride, conv_kernel, conv_bias: the front end's convolutions; one entry each.
        num_conv_pos_embeddings, conv_pos_kernel_size, num_conv_pos_embedding_groups: number, kernel size and groups of
            the positional convolutions.
        mask_time_prob, mask_time_length, mask_time_min_masks: SpecAugment in training, over frames; see
            `d2v.models.masking.span_mask`.
        mask_feature_prob, mask_feature_length, mask_feature_min_masks: the same over channels.
        apply_spec_augment: whether these masks are drawn; masks that are given are applied in any case.
        ctc_loss_reduction: "sum" over the batch, or "mean" over labels and clips.
        ctc_zero_infinity: labels longer than their clip's frames count as 0 instead of infinity.
        use_weighted_layer_sum: all heads but CTC's read a learned sum of all layers instead of the last layer.
        classifier_proj_size: width of the head that classifies clips.
        frame_loss: of the head that classifies frames, see `Data2VecAudioForAudioFrameClassification`; ours alone.
        tdnn_dim, tdnn_kernel, tdnn_dilation, xvector_output_dim: of the x-vector head; one entry a layer.
        xvector_variant: see `Data2VecAudioForXVector`; ours alone.
        pad_token_id, bos_token_id, eos_token_id: of the CTC vocabulary; the pad token is the blank.
        add_adapter, adapter_kernel_size, adapter_stride, num_adapter_layers, output_hidden_size: strided
            convolutions after the encoder that shorten its output.
    """

    model_type: ClassVar[str] = "data2vec-audio"

    vocab_size: int = 32
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout: float = 0.1
    activation_dropout: float = 0.1
    attention_dropout: float = 0.1
    feat_proj_dropout: float = 0.0
    final_dropout: float = 0.1
    layerdrop: float = 0.1
    layer_norm_eps: float = 1e-5
    feat_extract_activation: Activation = "gelu"
    conv_dim: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_bias: bool = False
    num_conv_pos_embedding_groups: int = 16
    conv_pos_kernel_size: int = 19
    num_conv_pos_embeddings: int = 5
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0
    apply_spec_augment: bool = True
    ctc_loss_reduction: Literal["sum", "mean"] = "sum"
    ctc_zero_infinity: bool = False
    use_weighted_layer_sum: bool = False
    classifier_proj_size: int = 256
    frame_loss: Literal["cross_entropy", "pit_bce"] = "cross_entropy"
    tdnn_dim: tuple[int, ...] = (512, 512, 512, 512, 1500)
    tdnn_kernel: tuple[int, ...] = (5, 3, 3, 1, 1)
    tdnn_dilation: tuple[int, ...] = (1, 2, 3, 1, 1)
    xvector_output_dim: int = 512
    xvector_variant: Literal["documented", "corrected", "normalized"] = "documented"
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    add_adapter: bool = False
    adapter_kernel_size: int = 3
    adapter_stride: int = 2
    num_adapter_layers: int = 3
    output_hidden_size: int | None = None

    def __post_init__(self):
        super().__post_init__()
        for names in (("conv_dim", "conv_stride", "conv_kernel"), ("tdnn_dim", "tdnn_kernel", "tdnn_dilation")):
            lengths = [len(getattr(self, name)) for name in names]
            if len(set(lengths)) > 1:
                raise InputError(f"{names[0]}, {names[1]} and {names[2]} should be equally long, not {lengths}")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise InputError(f"hidden_size {self.hidden_size} is not a multiple of {name} {getattr(self, name)}")
        self.output_hidden_size = self.output_hidden_size or self.hidden_size

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one frame to the next, before adapters: 320, or 20 ms, in the released models."""
        return math.prod(self.conv_stride)

    @property
    def frame_hop(self) -> int:
        """Samples from one frame of the output to the next, adapters counted if the model has them."""
        return self.inputs_to_logits_ratio * (self.adapter_stride**self.num_adapter_layers if self.add_adapter else 1)

    def frames(self, samples: Count, *, adapter: bool | None = None) -> Count:
        """Frames that so many samples give; an int or a tensor of ints. Adapters count if the model has them."""
        for kernel, stride in zip(self.conv_kernel, self.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        for _ in range(self.num_adapter_layers if (self.add_adapter if adapter is None else adapter) else 0):
            samples = (samples + 2 - self.adapter_kernel_size) // self.adapter_stride + 1  # a zero on either side
        return samples

    @property
    def frame_size(self) -> int:
        """Width of the frames that the model without a head returns."""
        return self.output_hidden_size if self.add_adapter and self.output_hidden_size else self.hidden_size

    @property
    def shortest_clip(self) -> int:
        """Samples that give one frame: 400, or 25 ms, in the released models."""
        samples = 1
        for kernel, stride in zip(reversed(self.conv_kernel), reversed(self.conv_stride), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def tdnn_context(self) -> int:
        """Frames by which the x-vector head's convolutions shorten a clip: 14 by default."""
        return sum(
            (kernel - 1) * dilation for kernel, dilation in zip(self.tdnn_kernel, self.tdnn_dilation, strict=True)
        )


class AudioEncoder(Encoder):
    """The shared encoder with positions and a norm before its first block."""

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(
            config.num_hidden_layers,
            layerdrop=config.layerdrop,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            hidden=config.intermediate_size,
            pre_norm=False,
            activation=config.hidden_act,
            norm_eps=config.layer_norm_eps,
            dropout=config.hidden_dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            layer_scale=0.0,
            key_bias=True,
            implementation=config.attn_implementation,
        )
        self.pos_conv_embed = PositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, packing: Packing, **options):
        """As `Encoder.forward`."""
        x = self.dropout(self.layer_norm(x + self.pos_conv_embed(x, packing)))
        return super().forward(x, packing, **options)


class AudioPreTrainedModel(PreTrainedModel):
    """What the audio models share: names, initialisation, input checks."""

    config_class = Data2VecAudioConfig
    config: Data2VecAudioConfig
    base_model: "Data2VecAudioModel"
    base_model_prefix = "data2vec_audio"
    renames: ClassVar[Renames] = (
        ("encoder.layers.*.attn.", "encoder.layers.*.attention."),
        ("encoder.layers.*.attn_norm.", "encoder.layers.*.layer_norm."),
        ("encoder.layers.*.ffn.fc1.", "encoder.layers.*.feed_forward.intermediate_dense."),
        ("encoder.layers.*.ffn.fc2.", "encoder.layers.*.feed_forward.output_dense."),
        ("encoder.layers.*.ffn_norm.", "encoder.layers.*.final_layer_norm."),
    )

    def freeze_feature_encoder(self) -> None:
        """Train the waveform front end no further (the default when fine-tuning; fairseq: `feature_grad_mult: 0`)."""
        self.base_model.feature_extractor.requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise as fairseq's wav2vec 2.0: Kaiming for convolutions, uniform for the feature projection."""
        for module in reversed(list(self.modules())):  # parts first, then what contains them
            init_linear(module, self.config.initializer_range)
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    bound = math.sqrt(module.groups / (module.in_channels * module.kernel_size[0]))
                    nn.init.uniform_(module.bias, -bound, bound)
            elif isinstance(module, PositionalConvLayer) and module.conv.bias is not None:
                nn.init.zeros_(module.conv.bias)
            elif isinstance(module, FeatureProjection):
                bound = module.projection.in_features**-0.5
                nn.init.uniform_(module.projection.weight, -bound, bound)
                nn.init.uniform_(module.projection.bias, -bound, bound)


class Data2VecAudioModel(AudioPreTrainedModel):
    """Waveforms to contextual frames, one every 20 ms."""

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.feature_extractor = FeatureEncoder(config)
        self.feature_projection = FeatureProjection(config)
        if config.mask_time_prob > 0 or config.mask_feature_prob > 0:
            self.masked_spec_embed = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.encoder = AudioEncoder(config)
        self.adapter = Adapter(config) if config.add_adapter else None
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> AudioModelOutput | tuple:
        """Encode a batch of clips.

        Args:
            input_values: (B, S) float, each clip normalised to zero mean and unit variance, padded on the right.
            attention_mask: (B, S), 1 at real samples; without it all are.
            mask_time_indices: (B, T) bool, frames to replace by the mask embedding; in training drawn as the
                configuration says when not given.
            head_mask: (H,) or (layers, H), a factor for each head's output.
            output_attentions: return attention weights, which takes the eager path in every layer.
            output_hidden_states: return all layers' outputs.
            return_dict: False for a tuple of the fields that are set.

        Raises:
            ValueError: the input has the wrong shape or dtype, or a clip is too short for a single frame.
        """
        x, packing, features, hidden_states, attentions = self.encode(
            input_values,
            attention_mask,
            mask_time_indices,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        output = AudioModelOutput(packing.unpack(x), features, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def encode(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        mask_time_indices: Tensor | None = None,
        **options,
    ) -> tuple[Tensor, Packing, Tensor, tuple[Tensor, ...] | None, tuple[Tensor | None, ...] | None]:
        """What `forward` does, but the last hidden state is packed, (N, D), and its packing follows it; for heads."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_frozen):
            x, packing, features = self.embed(input_values, attention_mask)
            x, hidden_states, attentions = self.encoder(
                self.mask(x, packing, mask_time_indices),
                packing,
                **options,
            )
            if self.adapter is not None:
                clips = [self.adapter(clip[None])[0] for clip in packing.trim(x).split(packing.known_lengths)]
                packing = packing_of_lengths([len(clip) for clip in clips], device=x.device)
                x = torch.cat(clips)
        return x, packing, features, hidden_states, attentions

    def embed(self, input_values: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Packing, Tensor]:
        """What the encoder reads before anything is dropped or masked: (N, D), its packing, the features, (B, T, C)."""
        check_float(input_values, "input_values", 2)
        if attention_mask is not None and attention_mask.shape != input_values.shape:
            shapes = f"{tuple(attention_mask.shape)}, input_values {tuple(input_values.shape)}"
            raise ValueError(f"attention_mask has shape {shapes}; they should be equal")
        samples = (
            [input_values.shape[1]] * len(input_values)
            if attention_mask is None
            else attention_mask.bool().sum(1).tolist()
        )
        if min(samples) < self.config.shortest_clip:
            raise ValueError(f"a clip has {min(samples)} samples; one frame takes {self.config.shortest_clip}")
        frames = [self.config.frames(n, adapter=False) for n in samples]
        longest = self.config.frames(input_values.shape[1], adapter=False)
        packing = packing_of_lengths(frames, longest, filler(sum(frames), input_values), input_values.device)
        x = packing.fill(self.feature_extractor(input_values, samples))
        x, features = self.feature_projection(x)
        return x, packing, packing.unpack(features)

    def mask(self, x: Tensor, packing: Packing, frames_to_mask: Tensor | None) -> Tensor:
        """Dropout and SpecAugment: frames become the mask embedding, channels 0. In training, or of given frames."""
        config, x = self.config, self.feature_projection.dropout(x)
        drawn = self.training and config.apply_spec_augment
        if frames_to_mask is None and drawn and config.mask_time_prob > 0:
            frames_to_mask = span_mask(
                packing.known_lengths,
                packing.length,
                config.mask_time_prob,
                config.mask_time_length,
                config.mask_time_min_masks,
            )
        if frames_to_mask is not None:
            masked = packing.pack(moved(frames_to_mask, x.device))[:, None]  # (N, 1)
            x = torch.where(masked, self.masked_spec_embed.to(x.dtype), x)
        if drawn and config.mask_feature_prob > 0:
            channels = span_mask(
                [config.hidden_size] * packing.batch,
                config.hidden_size,
                config.mask_feature_prob,
                config.mask_feature_length,
                config.mask_feature_min_masks,
            )
            x = x.masked_fill(packing.spread(moved(channels, x.device)), 0)
        return x


def packing_of_lengths(
    lengths: Sequence[int], longest: int | None = None, filler: int = 0, device: torch.device | None = None
) -> Packing:
    """Packing of rows with so many real positions each, B of them, padded to `longest`, on a device."""
    longest = max(lengths) if longest is None else longest
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return Packing.of(mask, len(lengths), longest, filler, device)
