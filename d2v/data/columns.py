"""Text files of columns, such as RTTM and lists of trials."""

import os
from collections.abc import Iterator
from pathlib import Path

from d2v.errors import InputError


def read_columns(path: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """The fields of each line that is not blank, after `<file>, line <number>` for messages.

    Raises:
        InputError: no such file, not text, or only blank lines.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file ({error})") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: is empty")
    for number, line in enumerate(lines, 1):
        if fields := line.split():
            yield f"{path}, line {number}", fields
