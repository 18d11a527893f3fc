"""Files of a folder or a hub repository, and the names of the weights in them: no tensors, and so no PyTorch."""

import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from d2v.errors import InputError

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"

PREPARE = "--mode prepare with the same options, on a machine with a network, brings it"
"""What mends that something is not there and cannot be fetched."""

PACKAGED = ("small/audio", "small/text", "small/vision")
"""Pretrained models that come with the package, which says in their cards what they are."""

Renames = tuple[tuple[str, str], ...]
"""Pieces of names, (ours, theirs), in which `*` stands for a number."""

# The TensorFlow models have Hugging Face's names of 2022; it has since renamed the parts of the segmentation head.
TENSORFLOW = (
    ("decode_head.psp_modules.*.1.conv.", "decode_head.psp_modules.blocks.*.conv.convolution."),
    ("decode_head.psp_modules.*.1.bn.", "decode_head.psp_modules.blocks.*.conv.normalization."),
    ("decode_head.bottleneck.conv.", "decode_head.psp_bottleneck.convolution."),
    ("decode_head.bottleneck.bn.", "decode_head.psp_bottleneck.normalization."),
    ("conv.", "convolution."),
    ("bn.", "normalization."),
)
KERAS = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
KERAS |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


def local_folder(source: str | os.PathLike) -> Path | None:
    """The folder that a source names: one of the disk, or one of `PACKAGED`; None for a hub id."""
    if Path(source).is_dir():
        return Path(source)
    return Path(__file__).parent / source if source in PACKAGED else None


def fetch_file(source: str | os.PathLike, name: str) -> Path | None:
    """The local path of a file of a folder or hub repository, downloaded if need be; None if it has no such file."""
    if folder := local_folder(source):
        path = folder / name
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


def of_lfs(source: str | os.PathLike | bytes) -> str:
    """What to add to a message of a file, or its bytes, that is but Git LFS's note of where the file is."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            noted = file.read(64).startswith(b"version https://git-lfs")
    except OSError:
        return ""
    return "; it is a pointer of Git LFS, whose `git lfs pull` brings the file" if noted else ""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if there is none."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: should hold a JSON object, not {value!r:.40}")
    return value


@contextmanager
def naming(source: str | os.PathLike) -> Iterator[None]:
    """Within, an InputError begins with the folder or hub repository whose files are read."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


@contextmanager
def in_place_of(path: Path) -> Iterator[Path]:
    """Within, a file to write that then takes the place of `path`; where that fails, `path` stays as it is."""
    beside = path.with_name(f"{path.name}.{uuid4().hex}.tmp")  # of its own, on a disk that machines share too
    try:
        beside.touch()
        mode = beside.stat().st_mode
        yield beside
        beside.chmod(mode)  # safetensors' files are for their owner alone, whatever the umask says
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    with in_place_of(path) as beside:
        beside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_config(source: str | Path) -> dict[str, Any]:
    """The entries of a checkpoint's `config.json`."""
    path = fetch_file(source, "config.json")
    if path is None:
        inner = f"; of a run it is {source}/best" if Path(source, "best/config.json").is_file() else ""
        what = f"a model is a folder with config.json and {WEIGHTS}, or a hub id"
        raise InputError(f"{source}: no config.json; {what}{inner}")
    return read_json(path)


def shards(source: str | os.PathLike, index: Path) -> list[Path]:
    """The files that the index of a checkpoint in several files names."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: no weight_map, which says in what file each weight is")
    found = {name: fetch_file(source, name) for name in sorted(set(names.values()))}
    for name, path in found.items():
        if path is None:
            raise InputError(f"{index}: names {name}, which is not there")
    return [path for path in found.values() if path is not None]


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


def read_h5(path: Path) -> dict[str, np.ndarray]:
    """The weights in Hugging Face's `tf_model.h5` of an image model, by today's names and laid out as PyTorch has them.

    What else an HDF5 file may hold is not looked at.
    """
    try:
        import h5py
    except ImportError:
        raise InputError('to read it takes h5py: pip install -e ".[h5]" in the clone of d2v') from None
    weights = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            # <layer>/<model>/<part>/.../kernel:0, where layer_._0 stands for the parts layer and 0
            *parts, last = name.removesuffix(":0").replace("_._", "/").split("/")[2:]
            value = item[()]
            if last == "kernel":  # (in, out); of convolutions (H, W, in, out), of transposed ones (H, W, out, in)
                value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
            weights[rename(".".join([*parts, KERAS.get(last, last)]), TENSORFLOW)] = value

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"damaged, or not an HDF5 file of Keras's ({error})") from error
    return weights


@dataclass
class Report:
    """What loading did not find, did not use, or found in another shape, under Hugging Face's names.

    Attributes:
        missing, unexpected, resized: names of weights.
        rows: classes or tokens that the checkpoint's head has, where some of its rows were taken.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    rows: int = 0

    def __str__(self) -> str:
        lines = (
            ("newly initialised, since the checkpoint lacks them", self.missing),
            ("in the checkpoint but not used", self.unexpected),
            ("of another shape in the checkpoint", self.resized),
        )
        return "\n".join(f"Weights {what}: {', '.join(sorted(names))}" for what, names in lines if names)
