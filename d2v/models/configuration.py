"""Configurations that read and write Hugging Face's `config.json`: what all share, and the image models'.

No tensors: the Keras models are built from the image models' too, on backends where PyTorch is not imported.
"""

import re
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from d2v.errors import InputError
from d2v.hub import load_config, naming

Configuration = TypeVar("Configuration", bound="Config")

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "selu", "silu", "swish", "tanh"]
Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(kw_only=True)
class Config:
    """Fields that every modality's configuration has.

    Attributes:
        initializer_range: standard deviation of the normal distribution that new linear layers are drawn from.
        num_labels: classes of a classification head; not stored, the length of `id2label` is.
        id2label: class number to name; by default LABEL_0 and so on, as many as num_labels says.
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        attn_implementation: "sdpa" or "eager"; how this process computes attention, not stored.
        extra: entries of a checkpoint's `config.json` that no PyTorch model here reads, kept so that saving loses
            nothing; `output_hidden_states` and the like are arguments of `forward` alone.
    """

    model_type: ClassVar[str]

    initializer_range: float = 0.02
    num_labels: int = 2
    id2label: dict[int, str] = field(default_factory=dict)
    problem_type: str | None = None
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.id2label = numbered_names({"id2label": self.id2label, "num_labels": self.num_labels}, type(self).__name__)
        self.num_labels = len(self.id2label)
        check_types(self)
        check_sizes(self)
        for each in fields(self):
            value = getattr(self, each.name)
            if re.search("dropout|layerdrop|_prob$|drop_path_rate", each.name) and not 0 <= (value or 0) <= 1:
                raise InputError(f"{type(self).__name__}.{each.name} should be between 0 and 1, not {value!r}")
            if each.name == "drop_path_rate" and value == 1:  # what is kept is divided by the chance to be kept
                raise InputError(f"{type(self).__name__}.drop_path_rate should be below 1")

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to number."""
        return {name: i for i, name in self.id2label.items()}

    @classmethod
    def from_dict(cls: type[Configuration], values: dict[str, Any], **changes) -> Configuration:
        """From the entries of a `config.json`; `changes` are this class's own fields, or `label2id`, and win."""
        if (found := values.get("model_type", cls.model_type)) != cls.model_type:
            raise InputError(f"config.json: model_type is {found!r}; {cls.__name__} reads {cls.model_type!r}")
        numbers = changes.pop("label2id", None)
        if numbers is not None and numbers != {name: int(i) for i, name in changes.get("id2label", {}).items()}:
            raise InputError(f"label2id {numbers!r:.80} should have the classes of id2label by name, given with it")
        known = {f.name for f in fields(cls)} - {"extra", "attn_implementation"}
        if unknown := sorted(set(changes) - known - {"attn_implementation"}):
            raise InputError(f"unknown configuration key {unknown[0]!r}; {cls.__name__} has {', '.join(sorted(known))}")
        if "num_labels" in changes and "id2label" not in changes:
            values = {key: value for key, value in values.items() if key != "id2label"}
        if values.get("id2label") == {} and "num_labels" not in values:
            values = values | {"num_labels": 0}  # which is not stored
        own = {key: value for key, value in values.items() if key in known}
        extra = {key: value for key, value in values.items() if key not in known and key != "label2id"}
        return cls(**own | changes, extra=extra)

    @classmethod
    def from_pretrained(cls: type[Configuration], source: str | Path, **changes) -> Configuration:
        """From `config.json` of a folder or a hub repository."""
        entries = load_config(source)
        try:
            return cls.from_dict(entries, **changes)
        except InputError:
            with naming(source):  # if the file's own entries are to blame
                cls.from_dict(entries)
            raise

    def to_dict(self) -> dict[str, Any]:
        """The entries of `config.json`."""
        values = {k: v for k, v in asdict(self).items() if k not in ("extra", "attn_implementation", "num_labels")}
        return self.extra | values | {"label2id": self.label2id, "model_type": self.model_type}


def numbered_names(entries: dict[str, Any], where: str) -> dict[int, str]:
    """The names of a head's classes by number, in order; by default LABEL_0 and so on.

    Args:
        entries: of a `config.json`, of which `id2label` and `num_labels` count. A list has the names in order; a name
            that is a number, as tools write where the classes of a table are numbers, is text.
        where: what an error names.
    """
    named, count = entries.get("id2label"), entries.get("num_labels", 2)
    if not named:
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
            raise InputError(f"{where}: num_labels should be a whole number from 0 on, not {count!r:.80}")
        return {i: f"LABEL_{i}" for i in range(count)}
    try:
        pairs = sorted((int(i), name) for i, name in (enumerate(named) if isinstance(named, list) else named.items()))
    except (AttributeError, TypeError, ValueError):
        pairs = [(0, None)]
    if any(not isinstance(name, str | Real) for _, name in pairs):
        raise InputError(f"{where}: id2label should map numbers to names, not {named!r:.80}")
    if gaps := sorted({*range(len(pairs))} - {i for i, _ in pairs}):
        last = len(pairs) - 1
        raise InputError(
            f"{where}: id2label should name the classes 0 to {last}; it has no {gaps[0]}; edit its config.json"
        )
    return {i: str(name) for i, name in pairs}


NO_SIZES = re.compile("_token_id$|_index$|_indices$|^image_size$|^patch_size$")
MAY_BE_0 = re.compile("mask|_num_convs$|^num_hidden_layers$|_range$|_eps$|adapter|xvector|tdnn|proj|auxiliary|labels")
"""Sizes of what a model may be without."""


def check_sizes(config: Config) -> None:
    """Raise InputError for the first size, or number of things, that there cannot be."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if hint in (int, int | None, tuple[int, ...]) or name.endswith(("_range", "_eps")):
            value, lowest = getattr(config, name), 0 if MAY_BE_0.search(name) else 1
            sizes = value if isinstance(value, tuple) else (value,)
            if not NO_SIZES.search(name) and any(size is not None and size < lowest for size in sizes):
                raise InputError(f"{type(config).__name__}.{name} should be at least {lowest}, not {value}")


def check_types(config: Any) -> None:
    """Raise InputError for the first field whose value is not of its declared type (an int passes as a float)."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is ClassVar:
            continue
        options = typing.get_args(hint) if typing.get_origin(hint) not in (dict, list) else (hint,)
        if typing.get_origin(hint) is Literal:
            valid = value in options
        elif typing.get_origin(hint) is tuple:
            setattr(config, name, value := tuple(value) if isinstance(value, list) else value)
            valid = isinstance(value, tuple) and all(type(item) is options[0] for item in value)
        else:
            types = tuple(typing.get_origin(option) or option for option in options or (hint,))
            types = (*types, int) if float in types else types
            valid = isinstance(value, types) and not (isinstance(value, bool) and bool not in types)
        if not valid:
            wanted = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise InputError(f"{type(config).__name__}.{name} should be {wanted}, not {value!r}")


@dataclass(kw_only=True)
class Data2VecVisionConfig(Config):
    """Configuration of the vision models; the sizes are data2vec vision base's, which are ViT-B's.

    Attributes:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act: size of the encoder.
        hidden_dropout_prob, attention_probs_dropout_prob: after the embeddings and each branch, and on the attention
            weights.
        layer_norm_eps: of all norms.
        image_size: pixels of a side, or (height, width), that the positions are for; others are interpolated.
        patch_size: likewise of a patch.
        num_channels: of an image.
        use_mask_token: the model has an embedding for patches that are masked.
        use_absolute_position_embeddings: an embedding for each patch of the grid.
        use_relative_position_bias: a table of attention biases for each layer.
        use_shared_relative_position_bias: one for all layers, as pretrained; with the former, both are added.
        layer_scale_init_value: what each branch is scaled by at first; 0 for no scales.
        drop_path_rate: DropPath of the last layer; it grows linearly from 0 at the first.
        use_mean_pooling: classify the normalised mean of the patches; else the class token, after a final norm.
        out_indices: of the segmentation head, the four hidden states that it takes, counted as
            `Data2VecVisionForSemanticSegmentation` says.
        pool_scales: of the segmentation head's pyramid pooling, into how many rows and columns.
        use_auxiliary_head, auxiliary_loss_weight, auxiliary_channels, auxiliary_num_convs, auxiliary_concat_input: of
            the second segmentation head that helps in training.
        semantic_loss_ignore_index: label of pixels that count for nothing.
    """

    model_type: ClassVar[str] = "data2vec-vision"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    image_size: int | list[int] | tuple[int, ...] = 224
    patch_size: int | list[int] | tuple[int, ...] = 16
    num_channels: int = 3
    use_mask_token: bool = False
    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    layer_scale_init_value: float = 0.1
    drop_path_rate: float = 0.1
    use_mean_pooling: bool = True
    out_indices: tuple[int, ...] = (3, 5, 7, 11)
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)
    use_auxiliary_head: bool = True
    auxiliary_loss_weight: float = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_concat_input: bool = False
    semantic_loss_ignore_index: int = 255

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_size", "patch_size"):
            value = getattr(self, name)
            if not isinstance(value, int):
                setattr(self, name, value := tuple(value))
            both = (value, value) if isinstance(value, int) else value
            if len(both) != 2 or any(type(side) is not int or side < 1 for side in both):
                raise InputError(f"{name} should be a whole number above 0 or two, (height, width), not {value!r}")
        if 0 in self.grid():
            raise InputError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    def grid(self, image_size: tuple[int, int] | None = None) -> Grid:
        """Rows and columns of whole patches in an image of (height, width); without one, of `self.image_size`."""
        (height, width), (rows, columns) = sides(image_size or self.image_size), sides(self.patch_size)
        return height // rows, width // columns


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
