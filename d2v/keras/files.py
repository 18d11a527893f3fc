"""Checkpoints of the Keras models: Hugging Face's safetensors, read and written, and TensorFlow's old `tf_model.h5`.

A weight goes by the same name as everywhere; inside it lies as Keras has it, (in, out) or (height, width, in, out).
"""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from d2v.errors import InputError
from d2v.hub import KERAS, WEIGHTS, WEIGHTS_INDEX, Report, fetch_file, in_place_of, read_h5, shards, write_json
from d2v.keras.layers import resize_positions
from d2v.models.configuration import Data2VecVisionConfig
from d2v.models.tables import offset_grid, resize_table

H5 = "tf_model.h5"
BASE = "data2vec_vision."
TABLE, POSITIONS = "relative_position_bias.relative_position_bias_table", "embeddings.position_embeddings"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32"}


def weight_names(model) -> dict[str, Any]:
    """A model's weights by Hugging Face's names."""
    names = {}
    for weight in model.weights:
        *parts, last = weight.path.removeprefix(f"{model.path}/").replace("-", "/").split("/")
        names[".".join([*parts, KERAS.get(last, last)])] = weight
    return names if model.has_head else {name.removeprefix(BASE): weight for name, weight in names.items()}


def transposed(value: np.ndarray, name: str) -> np.ndarray:
    """A weight of a linear layer or a convolution as PyTorch has it to one as Keras has it, or back."""
    if not name.endswith(".weight") or value.ndim < 2:
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def to_keras(value: np.ndarray, name: str) -> np.ndarray:
    """PyTorch's (out, in, height, width) as Keras's (height, width, in, out)."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else transposed(value, name)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file; bf16, which numpy does not have, as fp32."""
    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error})") from error
    weights = {}
    for name, entry in entries:
        if entry["dtype"] == "BF16":
            value = (np.frombuffer(entry["data"], "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] in DTYPES:
            value = np.frombuffer(entry["data"], np.dtype(DTYPES[entry["dtype"]]).newbyteorder("<"))
        else:
            raise InputError(f"{path}: {name} is {entry['dtype']}; weights are floating point")
        weights[name] = value.reshape(entry["shape"])
    return weights


def read_weights(source: str | Path) -> dict[str, np.ndarray]:
    """All weights of a checkpoint by Hugging Face's names, laid out as PyTorch has them: safetensors first."""
    if path := fetch_file(source, WEIGHTS):
        return read_safetensors(path)
    if path := fetch_file(source, WEIGHTS_INDEX):
        weights: dict[str, np.ndarray] = {}
        for shard in shards(source, path):
            weights |= read_safetensors(shard)
        return weights
    if path := fetch_file(source, H5):
        try:
            return read_h5(path)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    raise InputError(
        f"{source}: no {WEIGHTS} or {H5}; pickles are not opened here, d2v's PyTorch class reads and saves them anew"
    )


def load_weights(model, source: str | Path) -> Report:
    """Load a checkpoint into a model and say what did not fit, as `d2v.pretrained.load_weights`.

    A checkpoint without a head fits a model with one, and the other way round. Weights of another shape stay as
    initialised where they belong to a head; in the model itself they are an InputError, but for positions of another
    grid of patches, which are resized.
    """
    found, own, report = read_weights(source), weight_names(model), Report()
    found = {name: value for name, value in found.items() if not name.endswith("relative_position_index")}
    if model.has_head and not any(name.startswith(BASE) for name in found):
        found = {BASE + name: value for name, value in found.items()}
    elif not model.has_head:
        found = {name.removeprefix(BASE): value for name, value in found.items()}
    of_layers = [name for name in own if name.endswith(f"attention.{TABLE}")]
    shared = [name for name in found if name.endswith(f"encoder.{TABLE}") and name not in own]
    if shared and of_layers and not found.keys() & set(of_layers):  # BEiT pretrains with one, then has one each
        found |= dict.fromkeys(of_layers, found.pop(shared[0]))
    old, new = Data2VecVisionConfig.from_pretrained(source).grid(), model.config.grid()
    for name, value in found.items() if old != new else ():
        if name.endswith(TABLE) and len(value) == math.prod(offset_grid(old)) + 3:
            found[name] = resize_table(value, old, new)
        elif name.endswith(POSITIONS) and value.shape[1] == 1 + math.prod(old):
            found[name] = keras.ops.convert_to_numpy(resize_positions(value.astype("float32"), old, new))
    if not own.keys() & found.keys():
        raise InputError(f"{source}: not one weight of {type(model).__name__} is in this checkpoint")
    for name, value in found.items():
        if name not in own:
            report.unexpected.append(name)
            continue
        weight, value = own[name], to_keras(value, name)
        wanted = tuple(weight.shape)
        if value.shape == wanted:
            weight.assign(value)
        elif model.has_head and not name.startswith(BASE):
            report.resized.append(f"{name} {value.shape} instead of {wanted}")
        else:
            raise InputError(
                f"{source}: {name} has shape {value.shape}; the configuration asks for {wanted} (as Keras lays it out)"
            )
    report.missing = [name for name in own.keys() - found.keys() if not name.endswith("num_batches_tracked")]
    return report


def save(model, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` under Hugging Face's names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {}
    for name, weight in weight_names(model).items():
        value = transposed(keras.ops.convert_to_numpy(weight), name)
        narrow = "int64" if name.endswith("num_batches_tracked") else "float32"  # numpy has no bf16
        value = value.astype(narrow) if value.dtype not in ("float16", "float32", "float64") else value
        weights[name] = np.ascontiguousarray(value).reshape(value.shape)
    path = folder / WEIGHTS
    try:
        with in_place_of(path) as beside:
            save_file(weights, beside, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be written ({error}); what was saved before is untouched") from error
    name = type(model).__name__.removeprefix("TF")
    write_json(
        folder / "config.json", model.config.to_dict() | {"architectures": [name], "dtype": model.variable_dtype}
    )
