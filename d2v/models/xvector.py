"""Speaker embeddings: x-vectors (Snyder et al., 2018) over the encoder's frames, as SUPERB uses them.

Shapes: B batch, S samples, T frames, N real frames of a batch, D width, C classes: the speakers of the training data.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v import losses
from d2v.models.audio import AudioPreTrainedModel, Data2VecAudioConfig
from d2v.models.audio_heads import encoder_for_head, frames_for_head
from d2v.models.base import check_labels, mean
from d2v.models.outputs import XVectorOutput


class TDNNLayer(nn.Module):
    """A dilated convolution over time, kept as a linear layer over windows, and ReLU."""

    def __init__(self, config: Data2VecAudioConfig, index: int):
        super().__init__()
        before = config.tdnn_dim[max(index - 1, 0)]
        self.taps, self.dilation = config.tdnn_kernel[index], config.tdnn_dilation[index]
        self.kernel = nn.Linear(before * self.taps, config.tdnn_dim[index])

    def forward(self, x: Tensor) -> Tensor:
        """(T, D) -> (T', D'), T' = T - (taps - 1) * dilation"""
        frames = len(x) - (self.taps - 1) * self.dilation
        windows = [x[i * self.dilation : i * self.dilation + frames] for i in range(self.taps)]
        return F.relu(self.kernel(torch.cat(windows, dim=1)))


class AMSoftmax(nn.Module):
    """Cross-entropy over cosines, with a margin that the right class has to keep (Wang et al., 2018, equation 6).

    Scale and margin are those of s3prl's `AMSoftmaxLoss` and of Hugging Face.
    """

    def __init__(self, width: int, classes: int, scale: float = 30.0, margin: float = 0.4):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.randn(width, classes))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) and classes (B,) -> the sum over clips and their number."""
        # bf16 would round a cosine by up to 1/512, which the scale makes 0.06.
        with torch.autocast(x.device.type, enabled=False):
            cosines = F.normalize(x.float(), dim=1) @ F.normalize(self.weight.float(), dim=0)  # (B, C)
        right = labels[:, None] == torch.arange(cosines.shape[1], device=x.device)
        return losses.cross_entropy(self.scale * (cosines - self.margin * right), labels)


class Data2VecAudioForXVector(AudioPreTrainedModel):
    """Who speaks: convolutions over the frames, their mean and deviation over a clip, two linear layers.

    Only the frames that a clip's convolutions give count. (Hugging Face's lengths of padded clips leave the dilation
    out, and so count up to six frames of padding; its numbers for a clip alone are these.)

    With `config.xvector_variant` "documented" the two linear layers follow one another directly, as in Hugging Face's
    class, and so are one; "corrected" has the ReLU between them that x-vectors are defined with. The embedding is what
    comes before it (Snyder et al., 2018, section 2.2). Compare embeddings by their cosine.
    """

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio, self.layer_weights = encoder_for_head(config)
        self.projector = nn.Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList(TDNNLayer(config, i) for i in range(len(config.tdnn_dim)))
        self.feature_extractor = nn.Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        self.classifier = nn.Linear(config.xvector_output_dim, config.xvector_output_dim)
        self.objective = AMSoftmax(config.xvector_output_dim, config.num_labels)
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
    ) -> XVectorOutput | tuple:
        """An embedding of each clip's speaker, and the loss of telling the training speakers apart.

        Args:
            input_values, attention_mask, head_mask, output_attentions, output_hidden_states, return_dict: as in
                `Data2VecAudioModel.forward`.
            labels: (B,) speakers.

        Raises:
            ValueError: a label is outside the speakers, a clip is too short for a deviation, or the input is wrong as
                in `Data2VecAudioModel.forward`.
        """
        if labels is not None:
            check_labels(labels, input_values.shape[:1], self.config.num_labels)
        x, packing, hidden_states, attentions = frames_for_head(
            self,
            input_values,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        embeddings = self.feature_extractor(self.statistics(self.projector(x), packing.lengths))
        corrected = self.config.xvector_variant == "corrected"
        logits = self.classifier(F.relu(embeddings) if corrected else embeddings)
        loss = None if labels is None else mean(*self.objective(logits, labels))
        output = XVectorOutput(loss, logits, embeddings, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def statistics(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(N, D), clip after clip -> (B, 2 D'), mean and standard deviation over time of what the convolutions give."""
        context = self.config.tdnn_context
        if min(lengths) < context + 2:
            raise ValueError(f"a clip has {min(lengths)} frames; a speaker's embedding takes {context + 2}")
        for layer in self.tdnn:
            x = layer(x)
        # Frames that saw two clips lie between the clips' own, and are left out.
        starts = accumulate(lengths, initial=0)
        clips = [x[start : start + length - context] for start, length in zip(starts, lengths, strict=False)]
        return torch.stack([torch.cat([clip.mean(dim=0), clip.std(dim=0)]) for clip in clips])
