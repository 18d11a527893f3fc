"""Quotes of CSV and TSV that do not do what their writer meant: unclosed ones, other escapes, blanks before them."""

import csv
import io
import re
from pathlib import Path
from typing import Any

from d2v.data.files import open_binary
from d2v.errors import InputError

ESCAPED = re.compile(r'\\"[^",;\r\n]')
"""A backslash before a quote that goes on: not how CSV has it, but Spark's and MySQL's writers by default."""


def count_quoted(batch: Any, delimiter: str, before: int, found: dict[str, list[int]]) -> None:
    """Count the fields of a pyarrow batch that keep their quotes.

    Args:
        batch: of a CSV file.
        delimiter: of its fields. Quotes are characters after tabs and bars, and else where a blank stands before them.
        before: rows of the file before the batch.
        found: by column, how many there are and the row of the first; it is added to.
    """
    import pyarrow.compute as pc

    pattern = r'^ +".*"$' if delimiter in ",;" else r'^".*"$'
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        there = pc.match_substring_regex(column, pattern)
        if count := there.true_count:
            found.setdefault(name, [0, before + there.index(True).as_py()])[0] += count


def check_quotes(file: Path, delimiter: str) -> None:
    """Raise InputError for a field that begins with a quote and does not end with one: it swallowed the next rows."""
    begun, limit = 1, csv.field_size_limit(2**31 - 1)
    try:
        with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
            lines = csv.reader(text, delimiter=delimiter, strict=True)
            while True:
                try:
                    if next(lines, None) is None:
                        break
                except csv.Error as error:  # on one line it is a blank behind a quote, or a quote within
                    if lines.line_num > begun or "end of data" in str(error):
                        quotes = "should be closed, with two quotes for one within it"
                        raise InputError(f"{file}: a quote in line {begun} or after it {quotes} ({error})") from error
                begun = lines.line_num + 1
    finally:
        csv.field_size_limit(limit)


def check_escapes(file: Path) -> None:
    r"""Raise InputError for `\"` within a field, where it ends the field."""
    found, first = 0, 0
    with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        for number, line in enumerate(text, 1):
            if ESCAPED.search(line):
                found, first = found + 1, first or number
    if found:
        raise InputError(
            rf'{file}, line {first}: has \" within a field, and {found - 1} other lines have; CSV has two quotes, ""'
        )
