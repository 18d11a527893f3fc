"""From a checkpoint to the class that it was saved from."""

from pathlib import Path

import d2v
from d2v.errors import InputError
from d2v.hub import load_config
from d2v.models.base import PreTrainedModel


def model_class(source: str | Path) -> type[PreTrainedModel]:
    """The class that `architectures` in a checkpoint's `config.json` names; without it, the model without a head."""
    config = load_config(source)
    classes = {name: getattr(d2v, name) for name in d2v.__all__ if not name.endswith("Config")}
    plain = {cls.config_class.model_type: name for name, cls in classes.items() if name.endswith("Model")}
    names = config.get("architectures") or [plain.get(config.get("model_type"))]
    name = str(names[0]).removeprefix("TF")
    if name not in classes:
        wanted = f"{names[0]}, model_type {config.get('model_type')}"
        raise InputError(f"{source}/config.json: no class for {wanted}; there are {', '.join(classes)}")
    return classes[name]


def from_pretrained(source: str | Path, **options) -> PreTrainedModel:
    """A model of the right class; options as in `d2v.models.base.PreTrainedModel.from_pretrained`."""
    return model_class(source).from_pretrained(source, **options)
