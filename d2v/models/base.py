"""What all models share: load, save, freeze."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from d2v import losses, pretrained
from d2v.models.configuration import Config
from d2v.models.transformer import Attention, Encoder
from d2v.pretrained import Storable

Model = TypeVar("Model", bound="PreTrainedModel")


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
        replace(self.config, attn_implementation=implementation)  # InputError if there is none of this name
        self.config.attn_implementation = implementation
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = implementation

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        verbose: bool = True,
        **config_changes,
    ) -> Model:
        """A model with the configuration and weights of a folder or hub repository, in evaluation mode.

        Args:
            source: folder that `save_pretrained` or Hugging Face wrote, or a hub id.
            dtype: of the weights, or its name, such as "float16"; "auto" is the checkpoint's; by default float32.
            torch_dtype: another name of `dtype`.
            verbose: print which weights were missing, unexpected or of another shape.
            **config_changes: fields of the configuration that are to differ, such as `mask_time_prob=0.5`.
        """
        dtype = pretrained.as_dtype(torch_dtype if dtype is None else dtype, source)
        model = cls(cls.config_class.from_pretrained(source, **config_changes))
        report = pretrained.load_weights(model, source)
        if verbose and str(report):
            print(report)
        return model.to(dtype).eval()

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
