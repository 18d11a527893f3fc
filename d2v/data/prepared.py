"""What `datasets` prepares, of the hub or of folders with a card: as it stands, like files that are read without it."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from d2v.config import Data

OWN = {"sep", "delimiter", "header", "names", "column_names", "encoding", "features", "quoting"}
"""Options of `datasets` for CSV that a card may set, with which columns are read as text; others say more of them."""


def read_as_text(builder: Any, data: Data, files: Sequence[str]) -> None:
    """Have a builder of CSV and TSV read them as `d2v.data.tables.open_csv` does, unless a card says of what types.

    Args:
        builder: of `datasets`.
        data: has `delimiter` and `header`.
        files: of a split.
    """
    import fsspec
    from datasets import Features, Value

    config, plain = builder.config, type(builder.config)()
    names = {each.name for each in fields(plain)} - {each.name for each in fields(type(config).__mro__[1])} - OWN
    if builder.info.features is not None or any(getattr(config, name) != getattr(plain, name) for name in names):
        return
    config.sep = data.delimiter or config.sep
    config.quoting = csv.QUOTE_MINIMAL if config.sep in ",;" else csv.QUOTE_NONE
    config.na_filter = False
    if data.header:
        config.names, config.header = data.header, None
    columns = config.names
    if not columns:
        encoding = config.encoding or "utf-8-sig"
        with fsspec.open(str(files[0]), "rt", encoding=encoding, newline="", compression="infer") as file:
            columns = next(csv.reader(file, delimiter=config.sep, quoting=config.quoting), [])
    columns = [name or f"Unnamed: {i}" for i, name in enumerate(columns)]  # as pandas calls them
    if len({*columns}) == len(columns):
        config.features = builder.info.features = Features({name: Value("string") for name in columns})


@contextmanager
def sounds_as_files() -> Iterator[None]:
    """Within, `datasets` takes the sounds of files as they are, without torchcodec and FFmpeg."""
    import datasets

    original = datasets.Audio.encode_example

    def encode(self: Any, value: Any) -> dict[str, Any]:
        value = {"path": str(value)} if isinstance(value, str | Path) else value
        if not isinstance(value, dict) or "array" in value or str(value.get("path")).endswith("pcm"):
            return original(self, value)
        path = value.get("path")
        return {"bytes": None if path and Path(path).is_file() else value.get("bytes"), "path": path}

    datasets.Audio.encode_example = encode
    try:
        yield
    finally:
        datasets.Audio.encode_example = original
