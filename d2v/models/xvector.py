"""Speaker embeddings: x-vectors (Snyder et al., 2018) over the encoder's frames, as SUPERB uses them.

Shapes: B batch, S samples, T frames, N real frames of a batch, D width, C classes: the speakers of the training data.
"""

import copy
import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v import losses
from d2v.devices import moved
from d2v.models.audio import AudioPreTrainedModel, Data2VecAudioConfig
from d2v.models.audio_heads import encoder_for_head, frames_for_head
from d2v.models.base import check_labels, mean
from d2v.models.cpu import filler
from d2v.models.normalisation import BatchNorm1d
from d2v.models.outputs import XVectorOutput


class TDNNLayer(nn.Module):
    """A dilated convolution over time, kept as a linear layer over windows, ReLU, and a normalisation if asked for."""

    def __init__(self, config: Data2VecAudioConfig, index: int):
        super().__init__()
        before = config.tdnn_dim[max(index - 1, 0)]
        self.taps, self.dilation = config.tdnn_kernel[index], config.tdnn_dilation[index]
        self.kernel = nn.Linear(before * self.taps, config.tdnn_dim[index])
        normalized = config.xvector_variant == "normalized"
        self.norm = BatchNorm1d(config.tdnn_dim[index]) if normalized else nn.Identity()

    def forward(self, x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Frames of clips of these lengths, clip after clip, (N, D) -> (N', D') and what is left of the lengths."""
        context = (self.taps - 1) * self.dilation
        x = F.pad(x, (0, 0, 0, filler(len(x) - context, x)))
        windows = [x[i * self.dilation : len(x) - context + i * self.dilation] for i in range(self.taps)]
        x = F.relu(self.kernel(torch.cat(windows, dim=1)))
        # Windows that saw two clips, or filler, are left out.
        starts = accumulate(lengths, initial=0)
        own = [torch.arange(start, start + n - context) for start, n in zip(starts, lengths, strict=False)]
        return self.norm(x.index_select(0, moved(torch.cat(own), x.device))), [n - context for n in lengths]


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
            x, weight = losses.at_least_fp32(x), losses.at_least_fp32(self.weight)
            cosines = F.normalize(x, dim=1) @ F.normalize(weight, dim=0)  # (B, C)
        labels = moved(labels, x.device)
        right = labels[:, None] == torch.arange(cosines.shape[1], device=x.device)
        return losses.cross_entropy(self.scale * (cosines - self.margin * right.to(cosines.dtype)), labels)


class Data2VecAudioForXVector(AudioPreTrainedModel):
    """Who speaks: convolutions over the frames, their mean and deviation over a clip, two linear layers.

    Only the frames that a clip's convolutions give count. (Hugging Face's lengths of padded clips leave the dilation
    out, and so count up to six frames of padding; its numbers for a clip alone are these.)

    With `config.xvector_variant` "documented" the two linear layers follow one another directly, as in Hugging Face's
    class, and so are one; "corrected" has the ReLU between them that x-vectors are defined with, as s3prl and so SUPERB
    have it; "normalized" has a batch normalisation after every ReLU besides, as the authors train them (Kaldi's
    `relu-batchnorm-layer` in egs/sre16/v2/local/nnet3/xvector/run_xvector.sh). Without it a new head gives all clips
    nearly one embedding, and takes long to leave it. The embedding is what comes before the ReLU between the two
    (Snyder et al., 2018, section 2.2). Compare embeddings by their cosine.
    """

    def __init__(self, config: Data2VecAudioConfig):
        super().__init__(config)
        self.data2vec_audio, self.layer_weights = encoder_for_head(config)
        self.projector = nn.Linear(config.hidden_size, config.tdnn_dim[0])
        self.tdnn = nn.ModuleList(TDNNLayer(config, i) for i in range(len(config.tdnn_dim)))
        self.feature_extractor = nn.Linear(2 * config.tdnn_dim[-1], config.xvector_output_dim)
        width, variant = config.xvector_output_dim, config.xvector_variant
        self.relu = nn.Identity() if variant == "documented" else nn.ReLU()
        self.norm = BatchNorm1d(width) if variant == "normalized" else nn.Identity()
        self.classifier = nn.Linear(width, width)
        self.objective = AMSoftmax(width, config.num_labels)
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
            self.data2vec_audio,
            self.layer_weights,
            input_values,
            attention_mask,
            head_mask=head_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        embeddings = self.feature_extractor(self.statistics(self.projector(x), packing.known_lengths))
        logits = self.classifier(self.norm(self.relu(embeddings)))
        loss = None if labels is None else mean(*self.objective(logits, labels))
        output = XVectorOutput(loss, logits, embeddings, hidden_states, attentions)
        return output if return_dict else output.to_tuple()

    def statistics(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(N, D), clip after clip -> (B, 2 D'), mean and standard deviation over time of what the convolutions give."""
        context = self.config.tdnn_context
        if min(lengths) < context + 2:
            raise ValueError(f"a clip has {min(lengths)} frames; a speaker's embedding takes {context + 2}")
        for layer in self.tdnn:
            x, lengths = layer(x, lengths)
        return torch.stack([torch.cat([clip.mean(dim=0), clip.std(dim=0)]) for clip in x.split(lengths)])

    def folded(self) -> "Data2VecAudioForXVector":
        """A "normalized" model as a "corrected" one, which Hugging Face's library opens with the same embeddings.

        What a normalisation does in evaluation, a factor and a shift for each channel, moves into the linear layer
        after it. Other models are returned as they are.
        """
        if self.config.xvector_variant != "normalized":
            return self
        model = copy.deepcopy(self)
        model.config = dataclasses.replace(self.config, xvector_variant="corrected")
        layers = [layer for layer in model.tdnn if isinstance(layer, TDNNLayer)]
        linears = [*(layer.kernel for layer in layers[1:]), model.feature_extractor, model.classifier]
        for owner, linear in zip([*layers, model], linears, strict=True):
            norm: Any = owner.norm  # a batch normalisation
            owner.norm = nn.Identity()
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # (D,)
            shift = norm.bias - norm.running_mean * scale
            if linear is model.feature_extractor:  # a deviation is never negative, and has no shift
                scale, shift = torch.cat([scale, scale.abs()]), torch.cat([shift, torch.zeros_like(shift)])
            repeats = linear.in_features // len(scale)  # one for each tap
            with torch.no_grad():
                linear.bias.add_(linear.weight @ shift.repeat(repeats))
                linear.weight.mul_(scale.repeat(repeats))
        return model
