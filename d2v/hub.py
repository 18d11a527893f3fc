"""Files of a folder or a hub repository, and the names of the weights in them: no tensors, and so no PyTorch."""

import json
import os
import re
from pathlib import Path
from typing import Any

from d2v.errors import InputError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"

PREPARE = "--mode prepare with the same options, on a machine with a network, brings it"
"""What mends that something is not there and cannot be fetched."""

Renames = tuple[tuple[str, str], ...]
"""Pieces of names, (ours, theirs), in which `*` stands for a number."""


def fetch_file(source: str | os.PathLike, name: str) -> Path | None:
    """The local path of a file of a folder or hub repository, downloaded if need be; None if it has no such file."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    repo, revision = split_revision(str(source))
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError: offline, or the hub out of reach
        if try_to_load_from_cache(repo, name, revision=revision) is _CACHED_NO_EXIST:  # found missing when last there
            return None
        raise InputError(
            f"{source}: not a folder, and the hub cannot be reached ({name} is not in the cache); {PREPARE}"
        ) from error
    except EntryNotFoundError:
        return None
    except (HFValidationError, HfHubHTTPError) as error:
        raise InputError(f"{source}: neither a folder nor a hub repository that can be read") from error


def split_revision(source: str) -> tuple[str, str | None]:
    """A hub id and the branch, tag or commit that stands behind an @, as in `owner/name@refs/pr/1`."""
    name, _, revision = source.partition("@")
    return name, revision or None


def read_json_value(path: str | Path) -> Any:
    """What a JSON file holds; InputError if it is none."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if there is none."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold a JSON object, not {value!r:.40}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all: to a temporary file first, which then takes the place of the old one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)


def load_config(source: str | Path) -> dict[str, Any]:
    """The entries of a checkpoint's `config.json`."""
    path = fetch_file(source, "config.json")
    if path is None:
        raise InputError(f"{source}: no config.json; a model is a folder with config.json and {WEIGHTS}, or a hub id")
    return read_json(path)


def rename(key: str, table: Renames, *, to_ours: bool = False) -> str:
    """A weight's name on the other side of the table; names that no row matches stay."""
    for ours, theirs in table:
        old, new = (theirs, ours) if to_ours else (ours, theirs)
        pattern = r"(?<![^.])" + re.escape(old).replace(r"\*", r"(\d+)")  # a piece begins where a part of the name does
        renamed, found = re.subn(pattern, new.replace("*", r"\1"), key, count=1)
        if found:
            return renamed
    return key


def legacy(key: str) -> str:
    """The present name of a weight that TensorFlow-era checkpoints call otherwise."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda m: f"LayerNorm.{'weight' if m[1] == 'gamma' else 'bias'}", key)
