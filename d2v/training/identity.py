"""The identity of a run: its options, data, vocabulary and classes, which have to be the same when it is resumed."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from d2v.config import Job, recipe_file
from d2v.data.files import of_run
from d2v.errors import InputError
from d2v.hub import fetch_file, local_folder, read_json

RUN = "run.json"
"""File in a checkpoint's folder: the run's identity."""

RUN_MAY = "out epochs max_steps max_minutes resume pieces eval_every save_every save_minutes log_every keep_last"
RUN_MAY += " patience max_nonfinite gradient_checkpointing tracker project push private replications"
OPTIM_MAY = "lr betas eps weight_decay clip schedule warmup hold start_scale final_scale layer_decay"
OPTIM_MAY += " freeze_encoder_steps ema"
DATA_MAY = "path workers test_split max_test_samples also submission"  # another path to the same files
UNGROUPED = {"optim.weight_decay": 0.0, "optim.layer_decay": 1.0}  # these values make fewer parameter groups
ALARM_MAY = "rank unexplained deviation patience"  # of pretraining
FREE = {
    *(f"run.{name}" for name in RUN_MAY.split()),
    *(f"optim.{name}" for name in OPTIM_MAY.split()),
    *(f"data.{name}" for name in DATA_MAY.split()),
    *(f"alarm.{name}" for name in ALARM_MAY.split()),
}
"""Options whose values may change when a run is resumed; the new values apply from there on."""

CHOOSING = ("run.metric", "data.metrics")
"""Options that choose the best checkpoint; they may change while there is none."""
FREE_GROUPS = ("probe", "lm", "sampling", "center", "s_norm")
"""Options that do not affect which checkpoint is best; they may change too."""


def plain(value: Any) -> Any:
    """A configuration as dictionaries, lists and scalars, every value resolved."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A configuration's values by option name; class weights, although a dictionary, are one value."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value


def fingerprint(source: str | None, out: Path) -> dict[str, Any] | None:
    """Fingerprint of a file or a folder's files: their number, bytes, names and sizes.

    Neither contents nor times are read. Hidden files and folders of runs are left out.

    Args:
        source: as in `data.path`.
        out: the run's own folder.

    Returns:
        None where the data are not files on this machine.
    """
    path = Path(source).expanduser() if source else None
    if path is None or not path.exists():
        return None
    files = [(path.name, path.stat().st_size)] if path.is_file() else []
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        if here.resolve() == out.resolve() or of_run(names):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        seen = [here / name for name in names if not name.startswith(".")]
        files += [(file.relative_to(path).as_posix(), file.stat().st_size) for file in seen if file.is_file()]
    digest = hashlib.sha256("".join(f"{name}\t{size}\n" for name, size in sorted(files)).encode()).hexdigest()
    return {"files": len(files), "bytes": sum(size for _, size in files), "sha256": digest}


def checkpoint_fingerprint(source: str) -> dict[str, Any] | None:
    """Fingerprint of a checkpoint, without reading all of it.

    Args:
        source: hub id or folder of the model that a run starts from.

    Returns:
        For the hub the `commit`; for a folder the `sha256` of its files' names and sizes, and of the first and the last
        million bytes of each; None where neither is known.
    """
    folder = local_folder(source)
    if folder is None:
        try:
            file = fetch_file(source, "config.json")
        except InputError:  # loading the model will report it
            return None
        parts = file.parts if file else ()
        return {"commit": parts[parts.index("snapshots") + 1]} if "snapshots" in parts[:-2] else None
    digest = hashlib.sha256()
    for file in sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith(".")):
        size = file.stat().st_size
        digest.update(f"{file.name}\t{size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(10**6))
            content.seek(max(0, size - 10**6))
            digest.update(content.read(10**6))
    return {"sha256": digest.hexdigest()}


def run_identity(job: Job, batches: Any, model: Any, keep: Sequence[Any]) -> dict[str, Any]:
    """The identity of a run, which has to be the same when it is resumed.

    Args:
        job: from `d2v.training.job.start`, which has taken the fingerprint of the data.
        batches: of training.
        model: to be trained.
        keep: its processor, tokenizer and the like.

    Returns:
        `config`, `data`, the number of training `rows`, and digests of the `model`'s configuration and of `keep`, so
        that a vocabulary or classes from other rows are noticed.
    """
    files = job.out / "environment.json"
    data = read_json(files).get("data") if files.is_file() else None
    with tempfile.TemporaryDirectory() as folder:
        for part in keep:
            part.save_pretrained(folder)
        written = {file.name: file.read_bytes() for file in sorted(Path(folder).rglob("*")) if file.is_file()}
    kept = hashlib.sha256(b"".join(name.encode() + content for name, content in written.items())).hexdigest()
    settings = json.dumps(model.config.to_dict(), sort_keys=True, default=str)
    rows = len(batches.loader.dataset) if hasattr(batches, "loader") else None
    described = {"recipe": job.recipe, "config": plain(job.config), "data": data, "rows": rows, "kept": kept}
    return described | {"model": hashlib.sha256(settings.encode()).hexdigest()}


def check_config(config: Any, checkpoint: Path) -> list[str]:
    """Compare a configuration with the one that wrote a checkpoint.

    Returns:
        The changes that are applied, such as "optim.lr 0.0003 (was 0.001)".

    Raises:
        InputError: an option has changed that would make this another run.
    """
    if not (checkpoint / RUN).is_file():
        return []  # another format, which `load_checkpoint` reports
    made_of, source = read_json(checkpoint / RUN), recipe_file(type(config))
    if source and made_of.get("recipe", source.stem) != source.stem:
        raise InputError(f"{checkpoint}: is of a run of {made_of['recipe']}; {source.stem} needs another --run.out")
    before = dict(flat(made_of["config"]))
    now = dict(flat(json.loads(json.dumps(plain(config)))))
    best = (checkpoint.parents[1] / "best").is_dir()
    changed: list[str] = []
    refused: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        was, value = before.get(name), now.get(name)
        added = (name not in before or name not in now) and not name.startswith("arch.")  # by another d2v
        if was == value or added or name in ("run.out", "run.resume"):
            continue
        free = name in FREE or name.partition(".")[0] in FREE_GROUPS or (name in CHOOSING and not best)
        if name == "data.path" and not made_of.get("data"):
            free = False  # there are no files to recognise the data by
        if name == "optim.ema" and not (was and value):
            free = False  # an average starts with the run
        if name in UNGROUPED and UNGROUPED[name] in (was, value):
            free = False  # the optimiser's parameter groups change
        (changed if free else refused).append(f"{name} {value} (was {was})")
    if refused:
        raise InputError(
            f"{checkpoint}: a run goes on with what it began with, but here is {', '.join(refused)}; "
            "give the old values, or another --run.out for a new run"
        )
    return changed


def check_data(config: Any, checkpoint: Path, now: dict[str, Any] | None) -> None:
    """Raise InputError if the data's files differ from those that a checkpoint's run began with."""
    before = read_json(checkpoint / RUN).get("data") if (checkpoint / RUN).is_file() else now
    if before and now != before:
        is_now = f"{now['files']} files of {now['bytes']} bytes" if now else "not there"
        was = f"{before['files']} files of {before['bytes']} bytes"
        same = "; their names or sizes differ" if now and is_now == was else ""
        raise InputError(
            f"{config.data.path}: the run in {config.run.out} began with {was}, here it is {is_now}{same}; a run goes "
            "on with the same data: --run.out for a new one, with --model to start from its best/"
        )


def check_made_of(now: Mapping[str, Any], checkpoint: Path) -> None:
    """Raise InputError if rows, vocabulary or classes differ from those that a checkpoint's run began with."""
    before = read_json(checkpoint / RUN)
    for key, what in (("rows", "rows to train on"), ("kept", "vocabulary or processor"), ("model", "classes or model")):
        if before.get(key) != now[key]:
            numbers = f" ({before.get(key)}, now {now[key]})" if key == "rows" else ""
            raise InputError(
                f"{checkpoint}: the {what} are no longer those of the run{numbers}; a run goes on with the same data"
            )
