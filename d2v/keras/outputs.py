"""What the Keras models return: values by name, by position and by key.

Shapes: B batch, L class token and patches, D width, H heads, C classes.
"""

from collections import namedtuple
from functools import cache
from typing import Any

FIELDS = (
    "loss",
    "logits",
    "last_hidden_state",
    "pooler_output",
    "hidden_states",
    "attentions",
    "auxiliary_logits",
)


class Output:
    """Values by name (`output.logits`), by key (`output["logits"]`) and by position (`output[0]`).

    A named tuple of the values that are set, since that is what every backend takes apart and puts together again in
    compiled code; a documented value that is not set is None. As a mapping it has `keys`, `items`, `get` and `in`.

    Attributes:
        loss: scalar, with labels: the mean, also where Hugging Face's TensorFlow classes returned one a row.
        logits: (B, C), of segmentation (B, C, 4 * rows, 4 * columns) for a grid of rows and columns of patches.
        last_hidden_state: (B, L, D), the class token first.
        pooler_output: (B, D), the patches' normalised mean, or the class token's state.
        hidden_states: the embeddings and each layer's output, (B, L, D) each.
        attentions: each layer's weights, (B, H, L, L).
        auxiliary_logits: (B, C, rows, columns), the auxiliary head's, in training or with labels.
    """

    _fields: tuple[str, ...]

    def to_tuple(self) -> tuple:
        """The values, in order."""
        return tuple(getattr(self, name) for name in self._fields)

    def keys(self) -> tuple[str, ...]:
        """The names of the values that are set."""
        return self._fields

    def values(self) -> tuple:
        """The values."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Names and values."""
        return tuple(zip(self._fields, self.to_tuple(), strict=True))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a name that is set, else the default."""
        return getattr(self, key) if key in self._fields else default

    def __getattr__(self, name: str) -> None:
        if name in FIELDS:
            return
        raise AttributeError(f"an output has {', '.join(FIELDS)}, and no {name!r}")

    def __getitem__(self, key):
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self._fields:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self._fields


@cache
def output_class(fields: tuple[str, ...]) -> type:
    """The named tuple of these fields: one class a set of them, as compiled code compares them."""
    return type("Output", (Output, namedtuple("Output", fields)), {"__slots__": ()})


def make_output(**values) -> Any:
    """An output of the values that are not None."""
    values = {name: value for name, value in values.items() if value is not None}
    return output_class(tuple(values))(**values)
