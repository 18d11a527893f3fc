"""Low-rank adapters (Hu et al., 2021) through peft, for all three modalities by the same names.

The blocks of all models call their linear layers `attn.q_proj`, `attn.k_proj`, `attn.v_proj`, `attn.out_proj`,
`ffn.fc1` and `ffn.fc2`. Adapters are written under Hugging Face's names: peft loads them onto Hugging Face's models,
and what it trained there loads here.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v.errors import InputError
from d2v.hub import fetch_file, read_json, rename
from d2v.models.base import PreTrainedModel
from d2v.models.xvector import Data2VecAudioForXVector
from d2v.pretrained import read_weights_file, write_weights

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # what peft puts before every name in its files
LAYERS = "q_proj, k_proj, v_proj, out_proj, fc1 and fc2"
NAME = "default"  # what peft calls an adapter that has no other name
TASKS = {
    "TextForTokenClassification": "TOKEN_CLS",
    "TextForQuestionAnswering": "QUESTION_ANS",
    "TextForCausalLM": "CAUSAL_LM",
}
"""What peft calls the task of a class; it has none for sound and images, and takes heads of one layer alone."""


def add_lora(
    model: PreTrainedModel,
    rank: int,
    *,
    alpha: float | None = None,
    dropout: float = 0.0,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
) -> None:
    """Freeze a model, in place, and give some linear layers of its blocks a low-rank update to train.

    The modules of the head and the pooler are trained as before and belong to the adapter: they are usually new. What
    is no module of its own stays as it is, such as the bias of a language model and the weights of a layer sum.

    Args:
        model: any of ours.
        rank: of the update.
        alpha: the update is scaled by `alpha / rank`; by default that is 2.
        dropout: before the update.
        target_modules: ends of the names of the layers; the paper's choice by default (section 4.2).
    """
    inject(model, target_modules, r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout)


def inject(model: PreTrainedModel, target_modules: Sequence[str], **options) -> None:
    """Put zero updates into a model's blocks, and leave only these and the head to train."""
    from peft import LoraConfig, inject_adapter_in_model

    kind = type(model).__name__
    inside = [name for name, _ in model.named_modules() if "encoder.layers." in name]
    layers = rf".*\bencoder\.layers\.\d+\.(?:\w+\.)*(?:{'|'.join(map(re.escape, target_modules))})"
    if unknown := [each for each in target_modules if not any(name.endswith(f".{each}") for name in inside)]:
        raise InputError(f"{kind} has no layers {', '.join(unknown)} for an adapter; there are {LAYERS}")
    try:
        inject_adapter_in_model(LoraConfig(target_modules=layers, **options), model, NAME)
    except ValueError as error:  # not a linear layer
        raise InputError(f"{kind}: no adapter for {', '.join(target_modules)}; there are {LAYERS}") from error
    for name in head_modules(model):
        model.get_submodule(name).requires_grad_(True)


def head_modules(model: PreTrainedModel) -> list[str]:
    """The modules outside the encoder that are trained and saved whole: those that themselves have weights."""
    base = "" if model.base_model is model else model.base_model_prefix + "."
    return [
        name
        for name, module in model.named_modules()
        if list(module.parameters(recurse=False))
        and not list(module.children())
        and (name.startswith(base + "pooler") or (base and not name.startswith(base)))
    ]


def adapter_weights(model: PreTrainedModel) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that an adapter consists of, as in its file, and the modules that it holds whole.

    peft takes every module whose name ends as one of those; the x-vector head's `feature_extractor` ends as the
    waveform front end does, which so has to be in the file too.
    """
    modules = head_modules(model)
    ends = tuple(modules)
    whole = tuple(name + "." for name, _ in model.named_modules() if modules and name.endswith(ends))
    weights = {key: value for key, value in model.state_dict().items() if ".lora_" in key or key.startswith(whole)}
    weights = {PREFIX + rename(key.replace(f".{NAME}.", "."), model.renames): value for key, value in weights.items()}
    return weights, [rename(name + ".", model.renames).rstrip(".") for name in modules]


def layer_names(keys: Sequence[str]) -> list[str]:
    """What the layers that adapter weights belong to are called inside their block, such as `attention.q_proj`."""
    modules = (re.sub(r"\.lora_\w+\..*$", "", key) for key in keys if ".lora_" in key)
    return sorted({re.sub(r"^.*encoder\.layers?\.\d+\.", "", module) for module in modules})


def save_lora(model: PreTrainedModel, folder: str | Path) -> None:
    """Write a model's adapter as peft does: `adapter_config.json` and `adapter_model.safetensors`."""
    weights, modules = adapter_weights(model)
    config = copy.copy(model.peft_config[NAME])
    config.target_modules, config.modules_to_save = layer_names(list(weights)), modules or None
    config.inference_mode = True
    kinds = [kind for name, kind in TASKS.items() if type(model).__name__.endswith(name)]
    config.task_type = kinds[0] if kinds else None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(weights, folder / ADAPTER)
    config.save_pretrained(folder)


def save_adapted(model: PreTrainedModel, folder: str | Path, keep: Sequence[Any] = ()) -> None:
    """Write a model so that it opens everywhere, and what belongs to it.

    Of a model with an adapter these are the merged weights, and `adapter/` besides. An x-vector head is folded.

    Args:
        model: any of ours.
        folder: to write into.
        keep: processors and tokenizers, saved by their `save_pretrained`.
    """
    if isinstance(model, Data2VecAudioForXVector):
        model = model.folded()
    if hasattr(model, "peft_config"):
        save_lora(model, Path(folder, "adapter"))
        model = copy.deepcopy(model)
        merge_lora(model)
    for part in (model, *keep):
        part.save_pretrained(folder)


def load_lora(model: PreTrainedModel, source: str | Path) -> None:
    """Put an adapter onto a model, in place: one that `save_lora` wrote, or peft for Hugging Face's model."""
    config_file, file = fetch_file(source, ADAPTER_CONFIG), fetch_file(source, ADAPTER)
    if config_file is None or file is None:
        missing = ADAPTER_CONFIG if config_file is None else ADAPTER
        raise InputError(f"{source}: no {missing}; an adapter is {ADAPTER_CONFIG} and {ADAPTER}")
    config = read_json(config_file)
    if config.get("peft_type") != "LORA" or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise InputError(f"{config_file}: should be a LoRA with one rank and alpha for all layers")
    weights = {
        rename(key.removeprefix(PREFIX), model.renames, to_ours=True): value
        for key, value in read_weights_file(file).items()
    }
    options: dict[str, Any] = {
        key: config[key] for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora") if key in config
    }
    for key, least in (("r", 1), ("lora_alpha", 0), ("lora_dropout", 0)):
        value = options.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int if key == "r" else int | float) or value < least:
            kind = "a whole number" if key == "r" else "a number"
            raise InputError(f"{config_file}: {key} is {value!r:.40}; should be {kind}, at least {least}")
    inject(model, layer_names(list(weights)), **options)
    named = {re.sub(r"(\.lora_\w+)\.", rf"\1.{NAME}.", key): value for key, value in weights.items()}
    own = model.state_dict()
    wanted = {key for key in own if ".lora_" in key}
    if unknown := sorted(named.keys() - own.keys()) or sorted(wanted - named.keys()):
        raise InputError(f"{file}: does not fit {type(model).__name__}, which differs at {unknown[0]}")
    for key, value in named.items():
        if value.shape != own[key].shape:
            theirs = rename(key.replace(f".{NAME}.", "."), model.renames)
            shapes = f"has shape {tuple(value.shape)}; the model and the rank in {ADAPTER_CONFIG} ask for"
            raise InputError(f"{file}: {theirs} {shapes} {tuple(own[key].shape)}")
    model.load_state_dict(named, strict=False)


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates to the weights that they belong to, in place; what is left is a plain model again."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)
