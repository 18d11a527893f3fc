"""Checkpoints as Hugging Face writes them: `config.json` and safetensors, from a folder or the hub.

Our parameter names differ from Hugging Face's inside the Transformer blocks, since all modalities share them. A model's
`renames` is a table of (ours, theirs) pieces of names, see `d2v.hub.rename`. It has to be a bijection on the model's
weights; the tests check every model's.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from d2v.errors import InputError
from d2v.hub import (
    WEIGHTS,
    WEIGHTS_INDEX,
    Renames,
    Report,
    fetch_file,
    in_place_of,
    legacy,
    load_config,
    of_lfs,
    read_json,
    rename,
    shards,
    write_json,
)

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Storable(nn.Module):
    """A model that has other names on disk.

    Attributes:
        renames: our parameter names to Hugging Face's.
        base_model_prefix: under this attribute, models with a head keep the model without one.
        config: has `to_dict`, which gives the entries of `config.json`.
    """

    renames: ClassVar[Renames]
    base_model_prefix: ClassVar[str]
    config: Any

    def adapt_weights(self, weights: dict[str, Tensor], entries: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """What a checkpoint's weights, by our names, are to this model; the place to drop or resize some.

        Args:
            weights: of the checkpoint.
            entries: of its `config.json`; by default it is as the model's.
        """
        return weights


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """All weights of a checkpoint, by Hugging Face's names: safetensors first, pickles without running their code."""
    for name, index in ((WEIGHTS, WEIGHTS_INDEX), (PICKLED, PICKLED_INDEX)):
        if path := fetch_file(source, name):
            return read_weights_file(path)
        if path := fetch_file(source, index):
            weights: dict[str, Tensor] = {}
            for shard in shards(source, path):
                weights |= read_weights_file(shard)
            return weights
    raise InputError(f"{source}: no weights; {WEIGHTS}, {WEIGHTS_INDEX}, {PICKLED} or {PICKLED_INDEX} is needed")


def read_weights_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors or PyTorch file."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise InputError(f"{path}: truncated or not a safetensors file ({error}){of_lfs(path)}") from error
    except Exception as error:  # nearly anything can come of a damaged pickle
        what = f"damaged, or holds more than tensors; such a pickle is not opened{of_lfs(path)}"
        raise InputError(f"{path}: {what}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: should hold tensors by name and nothing else, as Hugging Face writes it")
    for key, value in weights.items():  # what is quantised to 8 bits stands for other numbers; positions are whole
        wide = value.is_floating_point() and value.element_size() > 1
        if not wide and value.dtype not in (torch.int64, torch.int32, torch.bool):
            raise InputError(f"{path}: {key} is {str(value.dtype).removeprefix('torch.')}; weights are floating point")
    return weights


def as_dtype(given: torch.dtype | str | None, source: str | Path) -> torch.dtype:
    """The dtype that is meant, by default float32; by "auto" what a checkpoint's config.json says, or its weights have.

    Raises:
        InputError: it is none of floating point.
    """
    said: Any = given
    if given == "auto":
        entries = load_config(source)
        said = entries.get("dtype") or entries.get("torch_dtype")
        said = said or next(value.dtype for value in read_weights(source).values() if value.is_floating_point())
    found = getattr(torch, said.removeprefix("torch."), None) if isinstance(said, str) else said or torch.float32
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype: {said!r} should be auto or a dtype of floating point, such as float16")
    return found


def load_weights(
    model: Storable, source: str | Path, axes: Mapping[str, int] | None = None, rows: Mapping[int, int] | None = None
) -> Report:
    """Load a checkpoint into a model and say what did not fit.

    A checkpoint of the model without a head fits one with a head, and the other way round. Weights of another shape are
    left as initialised where they belong to a head; in the model itself they are an InputError.

    Args:
        model: the model.
        source: folder or hub repository.
        axes: weights of the head that have a row for each class or token, by our names, and the dimension of the rows.
        rows: of these the rows that are loaded, each with its number in the checkpoint; the others stay as initialised.
    """
    base = model.base_model_prefix + "."
    has_head = hasattr(model, model.base_model_prefix)
    found = {rename(legacy(key), model.renames, to_ours=True): value for key, value in read_weights(source).items()}
    if has_head and not any(key.startswith(base) for key in found):
        found = {base + key: value for key, value in found.items()}
    elif not has_head:
        found = {key.removeprefix(base): value for key, value in found.items()}
    found = model.adapt_weights(found, load_config(source))

    own, report, fitting = model.state_dict(), Report(), {}
    if not own.keys() & found.keys():
        raise InputError(f"{source}: not one weight of {type(model).__name__} is in this checkpoint")
    for key, axis in (axes or {}).items():
        if key in found and (value := found[key]).ndim > axis:
            pairs = [pair for pair in (rows or {}).items() if pair[1] < value.shape[axis]]
            here, there = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
            taken, report.rows = value.index_select(axis, there), value.shape[axis]
            sizes = {tuple(size for i, size in enumerate(each.shape) if i != axis) for each in (own[key], value)}
            if len(sizes) == 1:
                found[key] = own[key].index_copy(axis, here, taken.to(own[key].dtype))
    for key, value in found.items():
        theirs = rename(key, model.renames)
        if key not in own:
            report.unexpected.append(theirs)
        elif value.shape == own[key].shape:
            fitting[key] = value
        elif has_head and not key.startswith(base):
            report.resized.append(f"{theirs} {tuple(value.shape)} instead of {tuple(own[key].shape)}")
        else:
            raise InputError(
                f"{source}: {theirs} has shape {tuple(value.shape)}; the configuration asks for {tuple(own[key].shape)}"
            )
    report.missing = [rename(key, model.renames) for key in own.keys() - found.keys()]
    model.load_state_dict(fitting, strict=False)
    return report


def write_weights(weights: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    try:
        with in_place_of(path) as beside:
            save_file({key: value.contiguous() for key, value in weights.items()}, beside, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be written ({error}); what was saved before is untouched") from error


def save(model: Storable, folder: str | Path) -> None:
    """Write a model's `config.json` and `model.safetensors` under Hugging Face's names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {rename(key, model.renames): value for key, value in model.state_dict().items()}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    write_weights(weights, folder / WEIGHTS)
    entries = model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": dtype}
    entries.pop("torch_dtype", None)  # the older name of dtype, of the weights as they were
    write_json(folder / "config.json", entries)


def push_to_hub(model: Storable, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload what `save` writes to a hub repository, created if need be; returns the commit's address."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        return upload(Path(folder), repo_id, private=private, token=token)


def lacking(folder: Path) -> str | None:
    """What a model's folder lacks without which the model could not be used."""

    def there(*names: str) -> bool:
        return any((folder / name).is_file() for name in names)

    for names in (("config.json",), (WEIGHTS, WEIGHTS_INDEX)):
        if not there(*names):
            return " or ".join(names)
    entries = read_json(folder / "config.json")
    if entries.get("model_type") == "data2vec-text":
        whole = there("tokenizer.json") or (there("vocab.json") and there("merges.txt"))
        return None if whole else "tokenizer.json, nor vocab.json with merges.txt"
    if not there("preprocessor_config.json", "processor_config.json"):
        return "preprocessor_config.json"
    writes = any(str(name).endswith("ForCTC") for name in entries.get("architectures") or [])
    return "vocab.json" if writes and not there("vocab.json") else None


def push_folder(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload a model with its processor or tokenizer, card and adapter, as a run leaves it in `best/`.

    The token is the one that `hf auth login` or HF_TOKEN gives.

    Returns:
        The commit's address.

    Raises:
        InputError: the folder has no model or no processor, or the hub does not take it.
    """
    if missing := lacking(folder):
        raise InputError(f"{folder}: no {missing}, without which a pushed model could not be used")
    card = folder / "README.md"
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tmp", ".*"))
        if card.is_file():  # what runs the model names it as it is called there
            text = card.read_text("utf-8").replace('("best")', f'("{repo_id}")')
            Path(copy, "README.md").write_text(text.replace("--model best ", f"--model {repo_id} "), "utf-8")
        adapter = Path(copy, "adapter/adapter_config.json")
        if adapter.is_file() and Path((config := read_json(adapter)).get("base_model_name_or_path") or "").is_dir():
            write_json(adapter, config | {"base_model_name_or_path": None})  # a folder of this machine
        try:
            return upload(Path(copy), repo_id, private=private)
        except InputError as error:
            raise InputError(f"{error}; python -m d2v.push {folder} {repo_id} tries again") from error


def upload(folder: Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder to a hub repository, created if need be; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=str(folder)).commit_url
    except Exception as error:  # without a network each version of the client raises another library's
        reason = " ".join(str(error).split())
        raise InputError(f"{repo_id}: cannot be pushed to the hub ({reason})") from error
