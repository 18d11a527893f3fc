"""What models return: dataclasses that can also be read as mappings and by position.

Shapes: B batch, T frames or tokens, D width, P patches, H heads, C classes.
"""

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_dataclass


@dataclass
class ModelOutput:
    """Fields by name (`output.logits`), by key (`output["logits"]`) and by position (`output[0]`, `output[1:]`).

    Keys and positions leave out None: an output without a loss has no key "loss". As with Hugging Face's outputs,
    iterating gives keys; `to_tuple` gives the values, to unpack.
    """

    # Not a `collections.abc.Mapping`: of one, accelerate copies all 16-bit tensors to fp32, hidden states included.

    def to_tuple(self) -> tuple:
        """The values of the fields that are set, in order."""
        return tuple(self._dict().values())

    def keys(self) -> KeysView[str]:
        """Their names."""
        return self._dict().keys()

    def values(self) -> ValuesView:
        """Their values."""
        return self._dict().values()

    def items(self) -> ItemsView[str, Any]:
        """Their names and values."""
        return self._dict().items()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a field that is set, else the default."""
        return self._dict().get(key, default)

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._dict()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._dict()

    def __iter__(self) -> Iterator[str]:
        return iter(self._dict())

    def __len__(self) -> int:
        return len(self._dict())

    def _dict(self) -> dict[str, Any]:
        """The fields that are set, in order."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}


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
class TextModelOutput(ModelOutput):
    """Output of `Data2VecTextModel`.

    Attributes:
        last_hidden_state: (B, T, D), zeros at padded tokens.
        pooler_output: (B, D), the first token's state after a linear layer and tanh, if the model has a pooler.
        hidden_states: with `output_hidden_states`, the embeddings and each layer's output, (B, T, D) each.
        past_key_values: a decoder's cache, to be given back with the next tokens.
        attentions: with `output_attentions`, each layer's weights, (B, H, T, T past and present).
        cross_attentions: likewise over the other encoder's states, (B, H, T, T of the encoder).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    past_key_values: Any = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class VisionModelOutput(ModelOutput):
    """Output of `Data2VecVisionModel`.

    Attributes:
        last_hidden_state: (B, 1 + P, D), the class token first.
        pooler_output: (B, D), the patches' normalised mean, or the class token's state, if the model has a pooler.
        hidden_states: with `output_hidden_states`, the embeddings and each layer's output, (B, 1 + P, D) each.
        attentions: with `output_attentions`, each layer's weights, (B, H, 1 + P, 1 + P).
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class HeadOutput(ModelOutput):
    """Output of a model with a head.

    Attributes:
        loss: scalar, with `labels`.
        logits: (B, C), (B, T, C) or (B, C, height, width): a row for whatever the head classifies.
        hidden_states, attentions: as the model without a head returns them.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None


@dataclass
class SegmentationOutput(ModelOutput):
    """Output of `Data2VecVisionForSemanticSegmentation`.

    Attributes:
        loss: scalar, with `labels`.
        logits: (B, C, 4 * rows, 4 * columns) for a grid of rows and columns of patches.
        hidden_states, attentions: as in `VisionModelOutput`.
        auxiliary_logits: (B, C, rows, columns), the auxiliary head's, in training or with `labels`; for the loss.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    auxiliary_logits: Tensor | None = None


@dataclass
class CausalLMOutput(ModelOutput):
    """Output of `Data2VecTextForCausalLM`.

    Attributes:
        loss: scalar, with `labels`.
        logits: (B, T, C), C the vocabulary.
        past_key_values, hidden_states, attentions, cross_attentions: as in `TextModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class QuestionAnsweringOutput(ModelOutput):
    """Output of `Data2VecTextForQuestionAnswering`.

    Attributes:
        loss: scalar, with positions.
        start_logits, end_logits: (B, T), scores of being the answer's first and last token.
        hidden_states, attentions: as in `TextModelOutput`.
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class XVectorOutput(ModelOutput):
    """Output of `Data2VecAudioForXVector`.

    Attributes:
        loss: scalar, with `labels`.
        logits: (B, xvector_output_dim), what the loss compares with the training speakers' weights.
        embeddings: (B, xvector_output_dim), what any speakers are compared by.
        hidden_states, attentions: as in `AudioModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embeddings: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor | None, ...] | None = None


for each in ModelOutput.__subclasses__():
    register_dataclass(each)  # else torch.export takes no model that returns it
