"""Multiple choice: a prompt and what may follow it, one of which is right."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from d2v.config import Job
from d2v.data.rows import Rows, Split, first_problem
from d2v.data.text import TextData, encode_pairs
from d2v.errors import InputError
from d2v.processors.text import Tokenizer


@dataclass
class ChoiceData(TextData):
    """The data, by default with SWAG's columns; without a path the embedded demo.

    Attributes:
        prompt_column: column of what comes first: a sentence, a question, a text with a question.
        start_column: column of the text that all choices of a row begin with; null for none.
        choice_columns: columns of one choice each; or a single one of lists of choices.
        label_column: column of the number of the right choice, from 0.
    """

    prompt_column: str = "sent1"
    start_column: str | None = "sent2"
    choice_columns: list[str] = field(default_factory=lambda: [f"ending{i}" for i in range(4)])
    label_column: str = "label"


def read_choices(job: Job, splits: Mapping[str, Split]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[int]]]:
    """The `prompt` and the `choices` (a list of texts) of each row of each split, and the numbers of the right ones.

    Args:
        job: whose data have the options of `ChoiceData`; in prediction there are no labels.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: a column of choices is missing, or a row cannot be used.
    """
    data: ChoiceData = job.config.data
    texts, labels = {}, {}
    for name, split in splits.items():
        values = split.column(data.label_column) if job.labelled else None
        texts[name] = choice_texts(split, data, values)
        if values is not None:
            labels[name] = list(map(int, values))
    return texts, labels


def choice_texts(split: Split, data: ChoiceData, labels: Sequence[Any] | None) -> list[dict[str, Any]]:
    """The `prompt` and the `choices` of each row of a split, which is checked, with its labels if there are any."""
    names = split.table.column_names
    if missing := [column for column in data.choice_columns if column not in names]:
        raise InputError(f"{split.name}: no column {missing[0]!r} (data.choice_columns); there are {', '.join(names)}")
    texts = {column: split.column(column) for column in (data.prompt_column, data.start_column) if column}
    columns = [split.column(column) for column in data.choice_columns]
    choices = columns[0] if len(columns) == 1 else [list(row) for row in zip(*columns, strict=True)]

    def problem(i: int) -> str | None:
        before = {column: values[i] for column, values in texts.items()}
        reason = choices_problem(before, choices[i], data.choice_columns)
        return reason if reason or labels is None else number_problem(labels[i], data.label_column, choices[i])

    first_problem(split, problem)
    if data.start_column:
        starts = texts[data.start_column]
        choices = [[f"{start} {choice}" for choice in row] for start, row in zip(starts, choices, strict=True)]
    prompts = texts[data.prompt_column]
    return [{"prompt": prompt, "choices": row} for prompt, row in zip(prompts, choices, strict=True)]


def every_text(texts: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The prompts and choices of `read_choices`, for a tokenizer to be trained on."""
    for row in texts:
        yield row["prompt"]
        yield from row["choices"]


def choice_rows(
    split: Split, texts: list[dict[str, Any]], labels: Sequence[int] | None, tokenizer: Tokenizer, max_length: int
) -> Rows:
    """The rows of a split with `ids`, the tokens of the prompt with each choice; their length counts padding.

    Args:
        split: rows.
        texts, labels: from `read_choices`; no labels in prediction.
        tokenizer: of the model.
        max_length: most tokens of a prompt with a choice; the longer of the two is cut, and counted on the terminal.
    """
    prompts = [row["prompt"] for row in texts for _ in row["choices"]]
    choices = [choice for row in texts for choice in row["choices"]]
    encoded, cut = encode_pairs(tokenizer, [prompts, choices], max_length)
    if cut:
        print(f"{split.name}: {cut} of {len(encoded)} texts cut to {max_length} tokens")
    ids = iter(encoded)
    items = [row | {"ids": [next(ids) for _ in row["choices"]]} for row in texts]
    lengths = [len(item["ids"]) * max(map(len, item["ids"])) for item in items]
    return Rows(split, split.ids(), lengths, labels, items)


def choices_problem(texts: dict[str, Any], choices: Any, columns: Sequence[str]) -> str | None:
    """Why a row's texts cannot be used, or None.

    Args:
        texts: what comes before a choice, by column.
        choices: what may follow.
        columns: where they are from.
    """
    if not isinstance(choices, list):
        return f"{columns[0]} is {choices!r:.40}; should be a list of texts, or one of several columns"
    if len(choices) < 2:
        return f"{columns[0]} has {len(choices)} choices; should have two or more"
    for column, text in [*texts.items(), *((f"choice {i}", text) for i, text in enumerate(choices))]:
        if not isinstance(text, str) or not text.strip():
            return f"{column} is {text!r:.40}; should be text"
    return None


def number_problem(value: Any, column: str, choices: list[str]) -> str | None:
    """Why a label is not the number of a choice, or None; some sets of the hub have their numbers as text."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if (whole or (isinstance(value, str) and value.isdecimal())) and 0 <= int(value) < len(choices):
        return None
    return f"{column} is {value!r}; should be the number of a choice, 0 to {len(choices) - 1}"
