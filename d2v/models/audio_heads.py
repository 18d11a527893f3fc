"""Audio models with a head.

Shapes: B batch, S samples, T frames, D width, C classes or vocabulary, L labels, H heads.
"""

import torch
from torch import Tensor, nn

from d2v import losses
from d2v.models.audio import AudioPreTrainedModel, Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.outputs import CTCOutput


class Data2VecAudioForCTC(AudioPreTrainedModel):
    """Speech recognition: a linear layer over every frame, trained with CTC."""

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio = Data2VecAudioModel(config)
        self.dropout = nn.Dropout(config.final_dropout)
        self.lm_head = nn.Linear(
            config.output_hidden_size if config.add_adapter else config.hidden_size, config.vocab_size
        )
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
    ) -> CTCOutput | tuple:
        """Logits over the vocabulary for every frame, and the CTC loss.

        Args:
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states, return_dict: as in
                `Data2VecAudioModel.forward`.
            labels: (B, L) ids, -100 where a row has ended.

        Raises:
            ValueError: a label is outside the vocabulary, or the input is wrong as in `Data2VecAudioModel.forward`.
        """
        if labels is not None and labels.max() >= self.config.vocab_size:
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
            total, count = losses.ctc(
                logits,
                labels,
                self.output_lengths(input_values, attention_mask),
                blank=self.config.pad_token_id,
                zero_infinity=self.config.ctc_zero_infinity,
                reduction=self.config.ctc_loss_reduction,
            )
            loss = total / count if self.config.ctc_loss_reduction == "mean" else total
        output = CTCOutput(loss, logits, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def output_lengths(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B,) real frames of each clip: the part of the logits that means something."""
        if attention_mask is None:
            return torch.full(
                (len(input_values),), self.config.frames(input_values.shape[1]), device=input_values.device
            )
        return self.config.frames(attention_mask.sum(dim=1))
