"""What all models share: a configuration that reads and writes Hugging Face's `config.json`, and load, save, freeze."""

import typing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from d2v import losses, pretrained
from d2v.errors import InputError
from d2v.models.transformer import Attention, Encoder
from d2v.pretrained import Storable

Configuration = TypeVar("Configuration", bound="Config")
Model = TypeVar("Model", bound="PreTrainedModel")


@dataclass(kw_only=True)
class Config:
    """Fields that every modality's configuration has.

    Attributes:
        initializer_range: standard deviation of the normal distribution that new linear layers are drawn from.
        num_labels: classes of a classification head; not stored, the length of `id2label` is.
        id2label: class number to name; by default LABEL_0 and so on, as many as num_labels says.
        problem_type: "single_label_classification", "multi_label_classification" or "regression".
        attn_implementation: "sdpa" or "eager"; how this process computes attention, not stored.
        extra: entries of a checkpoint's `config.json` that no model here reads, kept so that saving loses nothing.
    """

    model_type: ClassVar[str]

    initializer_range: float = 0.02
    num_labels: int = 2
    id2label: dict[int, str] = field(default_factory=dict)
    problem_type: str | None = None
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not self.id2label:
            self.id2label = {i: f"LABEL_{i}" for i in range(self.num_labels)}
        self.id2label = dict(sorted((int(i), name) for i, name in self.id2label.items()))
        self.num_labels = len(self.id2label)
        check_types(self)

    @property
    def label2id(self) -> dict[str, int]:
        """Class name to number."""
        return {name: i for i, name in self.id2label.items()}

    @classmethod
    def from_dict(cls: type[Configuration], values: dict[str, Any], **changes) -> Configuration:
        """From the entries of a `config.json`; `changes` are this class's own fields and win."""
        if (found := values.get("model_type", cls.model_type)) != cls.model_type:
            raise InputError(f"config.json: model_type is {found!r}; {cls.__name__} reads {cls.model_type!r}")
        known = {f.name for f in fields(cls)} - {"extra", "attn_implementation"}
        if unknown := sorted(set(changes) - known - {"attn_implementation"}):
            raise InputError(f"unknown configuration key {unknown[0]!r}; {cls.__name__} has {', '.join(sorted(known))}")
        if "num_labels" in changes and "id2label" not in changes:
            values = {key: value for key, value in values.items() if key != "id2label"}
        own = {key: value for key, value in values.items() if key in known}
        extra = {key: value for key, value in values.items() if key not in known and key != "label2id"}
        return cls(**own | changes, extra=extra)

    @classmethod
    def from_pretrained(cls: type[Configuration], source: str | Path, **changes) -> Configuration:
        """From `config.json` of a folder or a hub repository."""
        return cls.from_dict(pretrained.load_config(source), **changes)

    def to_dict(self) -> dict[str, Any]:
        """The entries of `config.json`."""
        values = {k: v for k, v in asdict(self).items() if k not in ("extra", "attn_implementation", "num_labels")}
        return self.extra | values | {"label2id": self.label2id, "model_type": self.model_type}


def check_types(config: Config) -> None:
    """Raise InputError for the first field whose value is not of its declared type (an int passes as a float)."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is ClassVar:
            continue
        options = typing.get_args(hint) if typing.get_origin(hint) is not dict else (hint,)
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


class PreTrainedModel(Storable):
    """Base of the models. A class names its configuration and its table of renamed weights.

    Attributes:
        config_class: the configuration it is built from.
        config: that configuration.
        encoder: the blocks, of a model without a head.
        peft_config: of a model with an adapter, by the adapter's name; peft sets it.
    """

    config_class: ClassVar[type[Config]]
    config: Config
    encoder: Encoder
    peft_config: dict[str, Any]

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder_frozen = self.base_model_frozen = False

    @property
    def base_model(self) -> "PreTrainedModel":
        """The model without its head (itself if it has none)."""
        return getattr(self, self.base_model_prefix, self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Run all but the head without gradients.

        A region without gradients rather than `requires_grad = False`, so that it can be lifted in the middle of
        training without the optimiser or the distributed wrapper noticing (fairseq: `freeze_finetune_updates`).
        """
        self.base_model.encoder_frozen = frozen

    def freeze_base_model(self) -> None:
        """Train the head alone, for good; what lies before it computes as in evaluation, without dropout and masks."""
        self.base_model.requires_grad_(False)
        self.base_model_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True):
        """As torch's `train`, but for a base model that is frozen."""
        super().train(mode)
        if self.base_model_frozen:
            nn.Module.train(self.base_model, False)
        return self

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Keep only each block's input and compute the rest again in the backward pass: less memory, more time."""
        self.base_model.encoder.gradient_checkpointing = enable

    def set_attn_implementation(self, implementation: Literal["sdpa", "eager"]) -> None:
        """Choose how attention is computed from now on."""
        self.config.attn_implementation = implementation
        check_types(self.config)
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = implementation

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        verbose: bool = True,
        **config_changes,
    ) -> Model:
        """A model with the configuration and weights of a folder or hub repository, in evaluation mode.

        Args:
            source: folder that `save_pretrained` or Hugging Face wrote, or a hub id.
            torch_dtype: dtype of the weights; by default float32.
            verbose: print which weights were missing, unexpected or of another shape.
            **config_changes: fields of the configuration that are to differ, such as `mask_time_prob=0.5`.
        """
        model = cls(cls.config_class.from_pretrained(source, **config_changes))
        report = pretrained.load_weights(model, source)
        if verbose and str(report):
            print(report)
        return model.to(torch_dtype or torch.float32).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` as Hugging Face does, under its names."""
        pretrained.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Save to a hub repository, created if need be; returns the commit's address."""
        return pretrained.push_to_hub(self, repo_id, private=private, token=token)


def init_linear(module: nn.Module, std: float) -> None:
    """BERT's initialisation: normal weights, zero biases, norms that do nothing."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_float(values: Tensor, name: str, ndim: int) -> None:
    """Raise ValueError unless `values` is a float tensor with `ndim` dimensions."""
    if values.ndim != ndim or not values.is_floating_point():
        raise ValueError(
            f"{name} should be a float tensor with {ndim} dimensions, not {values.dtype} {tuple(values.shape)}"
        )


def check_labels(labels: Tensor, shape: tuple[int, ...], classes: int) -> None:
    """Raise ValueError unless `labels` has this shape and its numbers are classes or negative; compiled code trusts."""
    if labels.shape != shape:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; should be {tuple(shape)}")
    if not torch.compiler.is_compiling() and labels.numel() and labels.max() >= classes:
        raise ValueError(f"label {int(labels.max())} is outside the {classes} classes")


def mean(total: Tensor, count: Tensor) -> Tensor:
    """The loss as a model with a head returns it, from what `d2v.losses` return."""
    return total / count


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Mean of `d2v.losses.classification` for logits (B, C), after a look at the labels."""
    whole = not labels.is_floating_point() and logits.shape[1] > 1
    if problem_type == "single_label_classification" or (problem_type is None and whole):
        check_labels(labels.flatten(), logits.shape[:1], logits.shape[1])
    elif labels.numel() != logits.numel():
        raise ValueError(f"labels have shape {tuple(labels.shape)}; should be {tuple(logits.shape)}")
    return mean(*losses.classification(logits, labels, problem_type))
