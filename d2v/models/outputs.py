"""What models return: dataclasses that can also be read as tuples.

Shapes: B batch, T frames or tokens, D width, H heads, C classes or vocabulary.
"""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class ModelOutput:
    """Fields by name (`output.logits`), by key (`output["logits"]`) or, leaving out None, by position (`output[0]`)."""

    def to_tuple(self) -> tuple:
        """The fields that are set, in order."""
        return tuple(value for field in fields(self) if (value := getattr(self, field.name)) is not None)

    def __getitem__(self, key):
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self):
        return iter(self.to_tuple())


@dataclass
class AudioModelOutput(ModelOutput):
    """Output of `Data2VecAudioModel`.

    Attributes:
        last_hidden_state: (B, T, D), zeros at padded frames.
        extract_features: (B, T, conv_dim[-1]), the normalised features of the waveform front end.
        hidden_states: with `output_hidden_states`, the encoder's input and each layer's output, (B, T, D) each.
        attentions: with `output_attentions`, each layer's weights, (B, H, T, T); None where LayerDrop skipped one.
    """

    last_hidden_state: Tensor | None = None
    extract_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None


@dataclass
class CTCOutput(ModelOutput):
    """Output of `Data2VecAudioForCTC`.

    Attributes:
        loss: scalar, with `labels`; reduced as `config.ctc_loss_reduction` says.
        logits: (B, T, C), C the vocabulary.
        hidden_states, attentions: as in `AudioModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None
