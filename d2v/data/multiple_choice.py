"""Multiple choice: a prompt and what may follow it, one of which is right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from d2v.data.text import encode_texts
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


def read_choices(
    split: "Dataset", name: str, *, prompt: str, start: str | None, choices: Sequence[str], label: str | None
) -> list[dict[str, Any]]:
    """The rows of a split as `prompt`, `choices` (a list of texts) and, if they are to be read, `label` (an index).

    Args:
        split: its rows.
        name: of the split, for messages.
        prompt: column of the texts that come first.
        start: column of texts that each choice of a row begins with, as SWAG's `sent2`; None for nothing.
        choices: columns of one choice each; or a single one that holds lists of them, of any length.
        label: column of the right choices' numbers, from 0; None to leave them.

    Raises:
        InputError: a column of choices is missing, or a row cannot be used.
    """
    if missing := [column for column in choices if column not in split.column_names]:
        there = ", ".join(split.column_names)
        raise InputError(f"{name}: no column {missing[0]!r} (data.choice_columns); there are {there}")
    rows = []
    for i, row in enumerate(split):
        offered = row[choices[0]] if len(choices) == 1 else [row[column] for column in choices]
        texts = {prompt: row[prompt]} | ({start: row[start]} if start else {})
        if reason := choices_problem(texts, offered, choices) or (label and number_problem(row[label], label, offered)):
            raise InputError(f"{name}, row {i}: {reason}")
        texts = {
            "prompt": row[prompt],
            "choices": [f"{row[start]} {choice}" if start else choice for choice in offered],
        }
        rows.append(texts | ({"label": int(row[label])} if label else {}))
    return rows


def encode_choices(
    rows: list[dict[str, Any]], tokenizer: Tokenizer, name: str, max_length: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """The rows of `read_choices` with `ids`, the tokens of the prompt with each choice, and the padded tokens of each.

    Args:
        rows: of a split.
        tokenizer: of the model.
        name: of the split, for messages.
        max_length: most tokens of a prompt with a choice; the longer of the two is cut, and counted on the terminal.
    """
    import datasets

    pairs = [(row["prompt"], choice) for row in rows for choice in row["choices"]]
    pairs = datasets.Dataset.from_dict(dict(zip(("prompt", "choice"), zip(*pairs, strict=True), strict=True)))
    ids = iter(encode_texts(tokenizer, pairs, ["prompt", "choice"], name, max_length))
    rows = [row | {"ids": [next(ids) for _ in row["choices"]]} for row in rows]
    return rows, [len(row["ids"]) * max(map(len, row["ids"])) for row in rows]


def choices_problem(texts: dict[str, Any], offered: Any, columns: Sequence[str]) -> str | None:
    """Why a row's texts cannot be used, or None.

    Args:
        texts: what comes before a choice, by column.
        offered: the choices.
        columns: where they are from.
    """
    if not isinstance(offered, list):
        return f"{columns[0]} is {offered!r:.40}; should be a list of texts, or one of several columns"
    if len(offered) < 2:
        return f"{columns[0]} has {len(offered)} choices; should have two or more"
    for column, text in [*texts.items(), *((f"choice {i}", text) for i, text in enumerate(offered))]:
        if not isinstance(text, str) or not text.strip():
            return f"{column} is {text!r:.40}; should be text"
    return None


def number_problem(value: Any, column: str, offered: list[str]) -> str | None:
    """Why a label is not the number of a choice, or None; some sets of the hub have their numbers as text."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole or (isinstance(value, str) and value.isdecimal())) and 0 <= int(value) < len(offered):
        return None
    return f"{column} is {value!r}; should be the number of a choice, 0 to {len(offered) - 1}"
