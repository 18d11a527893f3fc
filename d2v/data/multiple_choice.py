"""Multiple choice: a prompt and what may follow it, one of which is right."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from d2v.config import Job, shares
from d2v.data.cache import arrays, map_table
from d2v.data.files import usual, walk
from d2v.data.rows import Rows, Split, check_rows
from d2v.data.sources import Source, read
from d2v.data.text import TextData, encode_table, note_cut
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class ChoiceData(TextData):
    """The data, by default with SWAG's columns; without a path the embedded demo.

    Attributes:
        prompt_column: column of what comes first: a sentence, a question, a text with a question.
        start_column: column of the text that all choices of a row begin with, which may be blank; null for none.
        choice_columns: columns of one choice each; or a single one of lists of choices, or of lists `text` and `label`.
        label_column: column of the right choice: its number, from 0, its letter, A to Z, or what `label` calls it.
        label_smoothing: share of the probability that is spread over all choices of a row in training.
    """

    whole: ClassVar[str | None] = "the choices of all rows are read before training"

    prompt_column: str = "sent1"
    start_column: str | None = "sent2"
    choice_columns: list[str] = field(default_factory=lambda: [f"ending{i}" for i in range(4)])
    label_column: str = "label"
    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        shares("data", self, ("label_smoothing",))

    @property
    def together(self) -> str | None:
        """The column of prompts: of one that has several rows, none is new."""
        return self.prompt_column


def read_exams(data: ChoiceData) -> Mapping[str, "Dataset"]:
    """All splits of a source; the files of RACE's authors too: `train`, `dev` and `test` with folders of texts.

    Such a file is an object with an `article`, its `questions`, their `options` and `answers`. A prompt is an article,
    which is what is cut of a long text, and a choice a question and an option; columns are called as the options say.
    """
    root, found = Path(data.path or ""), dict[str, list[Path]]()
    for file in walk(root) if data.path else ():
        if file.suffix.lower() == ".txt" and len(file.parts) > 1 and usual(file.parts[0]):
            found.setdefault(file.parts[0], []).append(root / file)
    if not found or not all(is_exam(files[0]) for files in found.values()):
        return read(data)
    return Source({split: partial(exam_rows, data, files) for split, files in found.items()}, [])


def is_exam(file: Path) -> bool:
    """Whether a file is one of RACE's."""
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except ValueError:
        return False
    return isinstance(content, dict) and {"article", "questions", "options"} <= content.keys()


def exam_rows(data: ChoiceData, files: Sequence[Path]) -> "Dataset":
    """The questions of RACE's files; InputError for a file that is of another form."""
    import datasets

    rows = []
    for file in files:
        try:
            exam = json.loads(file.read_text("utf-8-sig"))
            answers = exam.get("answers") or [None] * len(exam["questions"])
            for i, (question, options, answer) in enumerate(
                zip(exam["questions"], exam["options"], answers, strict=True)
            ):
                row = {"id": f"{exam.get('id', file.stem)}-{i}", data.prompt_column: exam["article"]}
                if data.start_column:
                    row[data.start_column] = question
                else:
                    options = [f"{question} {option}" for option in options]
                one = len(data.choice_columns) == 1
                row |= dict(zip(data.choice_columns, [options] if one else options, strict=True))
                rows.append(row | {data.label_column: answer})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file}: should have article, questions, and options and an answer of each, as in RACE ({error})"
            ) from error
    return datasets.Dataset.from_list(rows)


def read_choices(
    job: Job, splits: Mapping[str, Split]
) -> tuple[dict[str, Split], dict[str, list[dict[str, Any]]], dict[str, list[int]]]:
    """The rows of each split that can be used, their `prompt` and `choices`, and the numbers of the right ones.

    Args:
        job: whose data have the options of `ChoiceData`; in prediction there are no labels.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: a column of choices is missing, or a row cannot be used, unless `data.bad_rows` skips it.
    """
    data: ChoiceData = job.config.data
    kept: dict[str, Split] = {}
    texts: dict[str, list[dict[str, Any]]] = {}
    labels: dict[str, list[int]] = {}
    for name, split in splits.items():
        before = {column: split.column(column) for column in (data.prompt_column, data.start_column) if column}
        listed = list(map(list_choices, choice_values(split, data.choice_columns)))
        reasons = [
            choices_problem({column: values[i] for column, values in before.items()}, choices, data)
            for i, (choices, _) in enumerate(listed)
        ]
        if job.labelled:
            column = data.label_column
            numbers, reasons = right_choices(split.column(column), listed, reasons, column)
        good = check_rows(job, split, reasons).tolist()
        starts = before[data.start_column] if data.start_column else None
        kept[name], texts[name] = split.select(good), []
        for i in good:
            start = f"{starts[i]} " if starts and starts[i].strip() else ""
            choices = [f"{start}{choice}" for choice in listed[i][0]]
            texts[name].append({"prompt": before[data.prompt_column][i], "choices": choices})
        if job.labelled:
            labels[name] = [number for i in good if (number := numbers[i]) is not None]
    return kept, texts, labels


def right_choices(
    values: Sequence[Any], listed: Sequence[tuple[Any, list[str]]], reasons: Sequence[str | None], column: str
) -> tuple[list[int | None], list[str | None]]:
    """The number of the right choice of each row, and why a row cannot be used.

    What all rows can be read as is what is meant: "1" may be a choice's number, or a choice.

    Args:
        values: the rows' labels.
        listed: their choices, from `list_choices`.
        reasons: why rows cannot be used so far.
        column: of the labels.
    """
    read = [{} if why else readings(value, *each) for why, value, each in zip(reasons, values, listed, strict=True)]
    given = [each for each, reason in zip(read, reasons, strict=True) if not reason]
    forms = [form for form in ("number", "letter", "choice") if all(form in each for each in given)]
    found = [{number for form, number in each.items() if not forms or form in forms} for each in read]
    numbers = [next(iter(each)) if len(each) == 1 else None for each in found]
    rows = zip(reasons, numbers, values, listed, found, strict=True)
    return numbers, [
        why or (None if number is not None else number_problem(value, column, *each, several))
        for why, number, value, each, several in rows
    ]


def choice_values(split: Split, columns: Sequence[str]) -> Sequence[Any]:
    """The choices of each row as the columns have them, several columns as lists; `a.b` is field b of column a."""
    names = split.table.column_names
    columns = [column if column in names else column.partition(".")[0] for column in columns]
    if missing := [column for column in columns if column not in names]:
        raise InputError(f"{split.name}: no column {missing[0]!r} (data.choice_columns); there are {', '.join(names)}")
    values = [split.column(column) for column in dict.fromkeys(columns)]
    return values[0] if len(values) == 1 else [list(row) for row in zip(*values, strict=True)]


def list_choices(value: Any) -> tuple[Any, list[str]]:
    """The choices of a row, and what they are called: lists `text` and `label`, or objects that have these.

    ARC and CommonsenseQA have choices so. What is no list of choices stays, without names.
    """
    if isinstance(value, list) and value and all(isinstance(each, dict) and "text" in each for each in value):
        value = {key: [each.get(key) for each in value] for key in ("text", "label")}
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        return value["text"], [str(name) for name in value.get("label") or []]
    return value, []


def every_text(texts: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The prompts and choices of `read_choices`, for a tokenizer to be trained on."""
    for row in texts:
        yield row["prompt"]
        yield from row["choices"]


def choice_rows(
    job: Job,
    split: Split,
    texts: list[dict[str, Any]],
    labels: Sequence[int] | None,
    tokenizer: Tokenizer,
    max_length: int,
) -> Rows:
    """The rows of a split with `ids`, the tokens of the prompt with each choice; their length counts padding.

    Args:
        job: from `d2v.training.job.start`.
        split: rows.
        texts, labels: from `read_choices`; no labels in prediction.
        tokenizer: of the model.
        max_length: most tokens of a prompt with a choice; the longer of the two is cut, and counted.
    """
    import pyarrow as pa

    prompts = [row["prompt"] for row in texts for _ in row["choices"]]
    pairs = {"prompt": prompts, "choice": [choice for row in texts for choice in row["choices"]]}
    encode = partial(encode_table, tokenizer=tokenizer, columns=list(pairs), max_length=max_length)
    found = map_table(job, pa.table(pairs), encode, f"{split.name}: making tokens", parallel=False).data
    note_cut(job, split, int(found.column("cut").to_numpy().sum()), len(prompts), max_length)
    ids = iter(arrays(found.column("ids")))
    items = [row | {"ids": [next(ids) for _ in row["choices"]]} for row in texts]
    lengths = [len(item["ids"]) * max(map(len, item["ids"])) for item in items]
    return Rows(split, split.ids(), lengths, labels, items)


def choices_problem(texts: dict[str, Any], choices: Any, data: ChoiceData) -> str | None:
    """Why a row's texts cannot be used, or None.

    Args:
        texts: what comes before a choice, by column.
        choices: what may follow.
        data: what the columns are called.
    """
    columns = data.choice_columns
    if not isinstance(choices, list):
        return f"{columns[0]} is {choices!r:.40}; should be a list of texts, or one of several columns"
    if len(choices) < 2:
        return f"{columns[0]} has {len(choices)} choices; should have two or more"
    for column, text in [*texts.items(), *((f"choice {i}", text) for i, text in enumerate(choices))]:
        blank = column == data.start_column  # HellaSwag's endings may begin with themselves
        if not isinstance(text, str) or not (text.strip() or blank):
            return f"{column} is {text!r:.40}; should be text"
    return None


def readings(value: Any, choices: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    """The number of the right choice, from 0, by what the label may be: a `number`, a `letter` or a `choice`.

    Args:
        value: the label: a name of a choice, a number, a letter (A is 0), or the choice itself.
        choices: the choices.
        names: what they are called, if they have names; the label is then one of these or a choice.
    """
    if isinstance(value, bool) or value is None:
        return {}
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = value.strip() if isinstance(value, str) else str(value)
    if text in names:
        return {"choice": names.index(text)}
    found = {}
    if text not in choices:
        text = re.sub(r"^(\d+)\.0+$", r"\1", text)  # a CSV of pandas, where some are missing
    if re.fullmatch(r"\d+", text, re.ASCII) and not names:
        found["number"] = int(text)
    elif re.fullmatch("[A-Za-z]", text) and not names:
        found["letter"] = ord(text.upper()) - ord("A")
    if isinstance(value, str) and list(choices).count(text) == 1:
        found["choice"] = choices.index(text)
    return {form: number for form, number in found.items() if number < len(choices)}


def number_problem(
    value: Any, column: str, choices: Sequence[str], names: Sequence[str], several: Collection[int]
) -> str:
    """Why a label is not that of a choice, or of which `several` ones it is."""
    last = len(choices) - 1
    if several:
        one, two = sorted(several)[:2]
        return (
            f"{column} is {value!r}, which is choice {one} and choice {two}, by its text and by its number or letter; "
            "should be all numbers, all letters or all texts in this column"
        )
    wanted = ", ".join(names) if names else f"0 to {last}, or a letter, A to {chr(ord('A') + min(last, 25))}"
    return f"{column} is {value!r}; should be the number of a choice, {wanted}, or the choice itself"
