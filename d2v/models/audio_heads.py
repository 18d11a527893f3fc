"""Audio models with a head.

Shapes: B batch, S samples, T frames, N real frames of a batch, D width, C classes or vocabulary, L labels, H heads.
"""

import torch
from torch import Tensor, nn

from d2v import losses
from d2v.devices import moved
from d2v.errors import InputError
from d2v.models.audio import AudioPreTrainedModel, Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.base import check_labels, classification_loss, mean
from d2v.models.cpu import Dropout
from d2v.models.outputs import HeadOutput
from d2v.models.packing import Packing


class Data2VecAudioForCTC(AudioPreTrainedModel):
    """Speech recognition: a linear layer over every frame, trained with CTC."""

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio = Data2VecAudioModel(config)
        self.dropout = Dropout(config.final_dropout)
        self.lm_head = nn.Linear(config.frame_size, config.vocab_size)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        labels: Tensor | None = None,
    ) -> HeadOutput | tuple:
        """Logits over the vocabulary for every frame, and the CTC loss.

        Args:
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states, return_dict: as in
                `Data2VecAudioModel.forward`.
            labels: (B, L) ids, -100 where a row has ended.

        Raises:
            ValueError: a label is outside the vocabulary, the configuration has no blank, or the input is wrong as in
                `Data2VecAudioModel.forward`.
        """
        if labels is not None and labels.numel() and labels.max() >= self.config.vocab_size:
            raise ValueError(f"label {int(labels.max())} is outside the vocabulary of {self.config.vocab_size}")
        x, packing, _, hidden_states, attentions = self.data2vec_audio.encode(
            input_values,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits, loss = packing.unpack(self.lm_head(self.dropout(x))), None
        if labels is not None:
            if self.config.pad_token_id is None:
                raise ValueError("config.pad_token_id is the blank; without one there is no CTC loss")
            total, count = losses.ctc(
                logits,
                labels,
                self.output_lengths(input_values, attention_mask),
                blank=self.config.pad_token_id,
                zero_infinity=self.config.ctc_zero_infinity,
                reduction=self.config.ctc_loss_reduction,
            )
            loss = total / count if self.config.ctc_loss_reduction == "mean" else total
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def output_lengths(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B,) real frames of each clip: the part of the logits that means something."""
        if attention_mask is None:
            return torch.full(
                (len(input_values),), self.config.frames(input_values.shape[1]), device=input_values.device
            )
        return self.config.frames(attention_mask.bool().sum(dim=1))


class Data2VecAudioForSequenceClassification(AudioPreTrainedModel):
    """Classes of whole clips: the mean of a clip's frames and two linear layers."""

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio, self.layer_weights = encoder_for_head(config)
        self.projector = nn.Linear(config.hidden_size, config.classifier_proj_size)
        self.classifier = nn.Linear(config.classifier_proj_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        labels: Tensor | None = None,
    ) -> HeadOutput | tuple:
        """Logits of each clip, and the loss that `losses.classification` finds for the labels.

        Args:
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states, return_dict: as in
                `Data2VecAudioModel.forward`.
            labels: (B,) class numbers; (B, C) floats, zeros and ones or, for regression, values.

        Raises:
            ValueError: the labels do not fit, or the input is wrong as in `Data2VecAudioModel.forward`.
        """
        x, packing, hidden_states, attentions = frames_for_head(
            self.data2vec_audio,
            self.layer_weights,
            input_values,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        # The projector is linear: of the mean it gives the mean of what it gives of the frames, for far less work.
        frames = moved(torch.tensor(packing.lengths)[:, None], x.device)
        wide = torch.promote_types(x.dtype, torch.float32)  # a sum of many frames may be too large for fp16
        means = (packing.unpack(x).sum(dim=1, dtype=wide) / frames).to(x.dtype)  # (B, D)
        logits = self.classifier(self.projector(means))
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


class Data2VecAudioForAudioFrameClassification(AudioPreTrainedModel):
    """Classes of every frame, such as who speaks when: a linear layer.

    With `config.frame_loss` "cross_entropy", as Hugging Face documents, a frame belongs to one class, and one without
    any to the first. With "pit_bce" each class is a speaker, any number of whom may speak, and their order is free.
    """

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio, self.layer_weights = encoder_for_head(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.init_weights()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        labels: Tensor | None = None,
    ) -> HeadOutput | tuple:
        """Logits of each frame, and the mean loss of the real frames.

        Args:
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states, return_dict: as in
                `Data2VecAudioModel.forward`.
            labels: (B, T, C), 1 where a class is present, else 0; -100 where nothing counts.

        Raises:
            ValueError: the labels do not fit, or the input is wrong as in `Data2VecAudioModel.forward`.
        """
        x, packing, hidden_states, attentions = frames_for_head(
            self.data2vec_audio,
            self.layer_weights,
            input_values,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits, loss = packing.unpack(self.classifier(x)), None
        if labels is not None:
            check_labels(labels, logits.shape, 2)
            if packing.mask is not None:
                labels = labels.masked_fill(~packing.mask[:, :, None], losses.IGNORE)
            if self.config.frame_loss == "pit_bce":
                loss = mean(*losses.pit_bce(logits, labels))
            else:
                classes = labels.argmax(dim=-1).masked_fill((labels == losses.IGNORE).any(dim=-1), losses.IGNORE)
                loss = mean(*losses.cross_entropy(logits.flatten(0, 1), classes.flatten()))
        output = HeadOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()


def encoder_for_head(config: Data2VecAudioConfig) -> tuple[Data2VecAudioModel, nn.Parameter | None]:
    """The encoder, and equal weights for its input and each layer if the head is to read their weighted sum.

    Raises:
        InputError: the configuration has an adapter.
    """
    if config.add_adapter:
        raise InputError("add_adapter should be false: only Data2VecAudioModel and Data2VecAudioForCTC take an adapter")
    states = config.num_hidden_layers + 1
    weights = nn.Parameter(torch.full((states,), 1 / states)) if config.use_weighted_layer_sum else None
    return Data2VecAudioModel(config), weights


def frames_for_head(
    encoder: Data2VecAudioModel,
    layer_weights: nn.Parameter | None,
    input_values: Tensor,
    attention_mask: Tensor | None,
    *,
    output_hidden_states: bool,
    **options,
) -> tuple[Tensor, Packing, tuple[Tensor, ...] | None, tuple[Tensor | None, ...] | None]:
    """What a head reads: the last layer or, if there are layer weights, the weighted sum of all.

    With a frozen encoder the sum is SUPERB's protocol (Yang et al., 2021): the weights learn all the same.

    Returns:
        Frames (N, D), their packing, and the hidden states and attentions that were asked for.
    """
    wanted = output_hidden_states or layer_weights is not None
    x, packing, _, hidden_states, attentions = encoder.encode(
        input_values, attention_mask, output_hidden_states=wanted, **options
    )
    if layer_weights is not None and hidden_states is not None:
        weights = layer_weights.softmax(dim=0)
        terms = (weight * state for weight, state in zip(weights, hidden_states, strict=True))
        x = packing.pack(sum(terms, start=weights.new_zeros(())))
    return x, packing, hidden_states if output_hidden_states else None, attentions
