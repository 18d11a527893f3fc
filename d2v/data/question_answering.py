"""Questions about texts, as in SQuAD: reading them, cutting texts into windows, the tokens of an answer.

An answer is a part of the text, from one character to before another.
Shapes: T tokens, C tokens of the text.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from d2v.config import Data, Job, at_least
from d2v.data.cache import arrays, map_table
from d2v.data.files import table_splits, walk
from d2v.data.folders import left_out
from d2v.data.rows import Rows, Split, check_rows
from d2v.data.sources import NOT_DATA, Source, read
from d2v.data.splits_of_tables import asked_splits
from d2v.data.tables import Remark
from d2v.data.text import TextData, encode_each
from d2v.data.windows import window_rows
from d2v.errors import InputError
from d2v.losses import IGNORE
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

Span = tuple[int, int]


@dataclass
class QuestionData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        question_column: column of the questions.
        context_column: column of the texts that the questions are about.
        answers_column: column of the right answers: lists `text` and `answer_start`, the number of the first character.
        unanswerable: some questions have no answer, as in SQuAD 2.0.
        no_answer_threshold: probability of no answer above which none is given.
        max_length: maximum number of tokens of a question with a window of its text; longer texts take several.
        stride: number of tokens that a window shares with the one before it.
        max_answer_length: maximum number of tokens of an answer.
        n_best: number of answers that are listed for each question.
    """

    whole: ClassVar[str | None] = "answers are looked for in all contexts before training"

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    unanswerable: bool = False
    no_answer_threshold: float = 0.5
    max_length: int = 384
    stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("max_answer_length", "n_best"))

    @property
    def together(self) -> str | None:
        """The column of texts: those that were read in training are known."""
        return self.context_column


def read_questions(data: Data) -> Mapping[str, "Dataset"]:
    """All splits of a source; the files of SQuAD's authors too: a folder with `train-v2.0.json` and `dev-v2.0.json`.

    Such a file is an object with `data`, a list of articles, or of questions as Hugging Face's scripts take them.
    """
    import datasets

    path = Path(data.path or "")
    root, files = (path.parent, [PurePath(path.name)]) if path.is_file() else (path, walk(path) if data.path else [])
    files = [file for file in files if file.suffix.lower() == ".json" and file.name not in NOT_DATA]
    files = [file for file in files if len(file.parts) == 1] or files
    found = {file: read_articles(root / file) for file in files}
    articles = {file: listed for file, listed in found.items() if listed is not None}
    if not articles:
        return read(data)
    remarks: list[Remark] = []
    if others := [file for file in files if file not in articles]:
        remarks.append(left_out(root, others, "not read: {}, which have no articles as SQuAD's files do"))
    splits: dict[str, list] = {}
    for split, names in table_splits(list(articles), asked_splits(data)).items():
        for file in names:
            try:
                splits.setdefault(split, []).extend(questions_of(articles[file] or []))
            except (KeyError, TypeError, AttributeError) as error:
                why = f"should be data[].paragraphs[].qas[], as in SQuAD's files ({error!r})"
                raise InputError(f"{root / file}: {why}") from error
    return Source({split: partial(datasets.Dataset.from_list, rows) for split, rows in splits.items()}, remarks)


def read_articles(file: Path) -> list | None:
    """What a JSON file has as `data`; None if it is of another form."""
    try:
        content = json.loads(file.read_text("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error})") from error
    except json.JSONDecodeError:  # such as an object on each line
        return None
    articles = content.get("data") if isinstance(content, dict) else None
    return articles if isinstance(articles, list) and all(isinstance(each, dict) for each in articles) else None


def questions_of(articles: list[dict]) -> Iterator[dict[str, Any]]:
    """The questions of articles, or of a list that has questions in their place."""
    for article in articles:
        if "paragraphs" not in article:
            yield article
        for paragraph in article.get("paragraphs", []):
            for question in paragraph["qas"]:
                row = {"id": str(question["id"]), "title": article.get("title", ""), "context": paragraph["context"]}
                row["question"] = question["question"]
                if "answers" in question or question.get("is_impossible"):
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row["answers"] = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
                yield row


def check_questions(job: Job, splits: Mapping[str, Split]) -> dict[str, Split]:
    """The rows of each split that can be used.

    Args:
        job: whose data have the options of `QuestionData`; in prediction there are no answers.
        splits: from `d2v.data.load.load`.

    Raises:
        InputError: a row cannot be used, unless `data.bad_rows` skips it, or another one has its id.
    """
    data: QuestionData = job.config.data
    kept = {}
    for name, split in splits.items():
        if name != "train":
            check_ids(name, split.ids())
        contexts = split.column(data.context_column)
        pairs = zip(split.column(data.question_column), contexts, strict=True)
        reasons = [question_problem(*pair) for pair in pairs]
        if job.labelled:
            options = {"unanswerable": data.unanswerable, "train": name == "train"}
            rows = zip(reasons, map(as_lists, split.column(data.answers_column)), contexts, strict=True)
            reasons = [reason or answers_problem(answers, context, **options) for reason, answers, context in rows]
        kept[name] = split.select(check_rows(job, split, reasons))
    return kept


def check_ids(split: str, ids: Sequence[str]) -> None:
    """Raise InputError if an id comes twice: the files of answers have one entry an id."""
    others = set()
    for name in ids:
        if name in others:
            raise InputError(f"{split}: two questions have the id {name!r}; ids should differ")
        others.add(name)


def question_problem(question: Any, context: Any) -> str | None:
    """Why a question about a text cannot be answered, or None."""
    for name, text in ("question", question), ("context", context):
        if not isinstance(text, str) or not text.strip():
            return f"the {name} is {text!r:.40}; should be text"
    return None


def as_lists(answers: Any) -> Any:
    """Answers as lists `text` and `answer_start`, also where they are objects that have these, or a single one.

    Numbers of characters that are written as text, or as 12.0, are numbers; blank texts alone are no answer.
    """
    if isinstance(answers, list) and all(isinstance(each, dict) for each in answers):
        answers = {key: [each.get(key) for each in answers] for key in ("text", "answer_start")}
    elif isinstance(answers, dict) and isinstance(answers.get("text"), str):
        answers = {key: [answers.get(key)] for key in ("text", "answer_start")}
    if isinstance(answers, dict) and isinstance(starts := answers.get("answer_start"), list):
        numbers = [int(it) if isinstance(it, str) and re.fullmatch(r"\s*\d+\s*", it) else it for it in starts]
        numbers = [int(it) if isinstance(it, float) and it.is_integer() else it for it in numbers]
        answers = answers | {"answer_start": numbers}
    texts = answers.get("text") if isinstance(answers, dict) else None
    if isinstance(texts, list) and texts and all(isinstance(text, str) and not text.strip() for text in texts):
        return answers | {"text": [], "answer_start": []}
    return answers


def answers_problem(answers: Any, context: str, *, unanswerable: bool, train: bool) -> str | None:
    """Why a question's answers cannot be trained on or scored against, or None.

    Args:
        answers: `text` and `answer_start`, a list each.
        context: the text that they are from.
        unanswerable: there need not be any.
        train: they have to be where they say they are.
    """
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or (train and (not isinstance(starts, list) or len(starts) != len(texts))):
        return f"answers are {answers!r:.60}; should be lists 'text' and 'answer_start' of one length"
    if not texts:
        return None if unanswerable else "no answer; --data.unanswerable true is for questions that have none"
    for text, start in zip(texts, starts if train and starts else [None] * len(texts), strict=True):
        if not isinstance(text, str) or (train and not text.strip()):
            return f"the answer {text!r:.40} should be text"
        if train and (not isinstance(start, int) or start < 0 or not context.startswith(text, start)):
            other = context[start : start + len(text)] if isinstance(start, int) and start >= 0 else None
            return f"the answer {text!r:.40} should begin at character {start} of its context, where {other!r:.40} is"
    return None


def question_rows(job: Job, split: Split, tokenizer: Tokenizer, max_length: int) -> Rows:
    """The windows of a split's texts, with the texts of all right answers as references.

    They have `answer`, the first and last token of the first right answer, see `answer_tokens`; twice `IGNORE` where
    the answers of another split than train do not say where they are.

    Args:
        job: whose data have the options of `QuestionData`; in prediction there are no answers.
        split: from `d2v.data.load.load`, checked by `check_questions`.
        tokenizer: of the model.
        max_length: most tokens, of question and window.
    """
    data: QuestionData = job.config.data
    windows, reasons = question_windows(job, split, tokenizer, max_length)
    good = check_rows(job, split, reasons)
    split, numbers = split.select(good), {source: i for i, source in enumerate(good.tolist())}
    windows = [window | {"source": numbers[window["source"]]} for window in windows]
    if not job.labelled:
        return window_rows(split, windows)
    answers = list(map(as_lists, split.column(data.answers_column)))
    for window in windows:
        right = answers[window["source"]]
        window["answer"] = (0, 0)
        if right["text"]:
            text, start = right["text"][0], (right.get("answer_start") or [None])[0]
            there = isinstance(start, int) and start >= 0 and window["context"].startswith(text, start)
            window["answer"] = answer_tokens(window, text, start) if there and text.strip() else (IGNORE, IGNORE)
    return window_rows(split, windows, [right["text"] for right in answers])


def question_windows(
    job: Job, split: Split, tokenizer: Tokenizer, max_length: int
) -> tuple[list[dict[str, Any]], list[str | None]]:
    """Questions with the windows of their texts, as `<s> question </s></s> window </s>`.

    Args:
        job: whose data name the columns, and the `stride`.
        split: rows; white space around questions is left out.
        tokenizer: of the model.
        max_length: most tokens, of question and window.

    Returns:
        For each window `source`, the number of its question, `question` and `context`, `ids` (T,) int32, `first`, its
        text's first token, and `offsets` (C, 2) int32, from which to before which character of the text each token is;
        and of each question why it leaves no room for a window, or None.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    data: QuestionData = job.config.data
    questions, contexts = split.column(data.question_column), split.column(data.context_column)
    texts = pa.table({"question": [text.strip() for text in questions], "context": contexts})
    encode = partial(encode_questions, tokenizer=tokenizer, max_length=max_length, stride=data.stride)
    found = map_table(job, texts, encode, f"{split.name}: making tokens", parallel=False).data
    counts = pc.list_value_length(found.column("first")).to_numpy()
    sources, firsts = np.repeat(np.arange(len(counts)), counts).tolist(), pc.list_flatten(found.column("first"))
    each = (arrays(pc.list_flatten(found.column(name))) for name in ("ids", "offsets"))
    windows = [
        {"source": source, "question": questions[source], "context": contexts[source], "ids": ids, "first": first}
        | {"offsets": offsets.reshape(-1, 2)}
        for source, first, ids, offsets in zip(sources, firsts.to_pylist(), *each, strict=True)
    ]
    return windows, found.column("problem").to_pylist()


def encode_questions(table: "pa.Table", *, tokenizer: Tokenizer, max_length: int, stride: int) -> "pa.Table":
    """Of a table of questions and texts the `ids`, `first` and `offsets` of windows, in a row, and its `problem`."""
    import pyarrow as pa

    texts = [column.to_pylist() for column in table.columns]
    encode = partial(tokenizer, max_length=max_length, truncation="only_second", stride=stride)
    encodings, problems = encode_each(encode, texts, "data.max_length, data.stride")
    windows = [[one, *one.overflowing] if one else [] for one in encodings]
    firsts = [[one.sequence_ids.index(1) for one in row] for row in windows]
    offsets = [
        [np.array(one.offsets[first:-1], np.int32).ravel() for one, first in zip(*both, strict=True)]
        for both in zip(windows, firsts, strict=True)
    ]
    numbers = pa.list_(pa.int32())
    columns = {"ids": pa.array([[one.ids for one in row] for row in windows], pa.list_(numbers))}
    columns |= {"first": pa.array(firsts, numbers), "offsets": pa.array(offsets, pa.list_(numbers))}
    return pa.table(columns | {"problem": pa.array(problems, pa.string())})


def answer_tokens(window: dict[str, Any], text: str, start: int) -> Span:
    """The first and last token of an answer; the window's first token twice, `<s>`, unless it is there as a whole.

    Args:
        window: from `question_windows`.
        text: the answer.
        start: its first character in the text.
    """
    offsets = window["offsets"]
    end = start + len(text.rstrip())
    start += len(text) - len(text.lstrip())
    if start < offsets[0, 0] or end > offsets[-1, 1]:
        return 0, 0
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))  # the first token that ends behind its beginning
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1  # the last that begins before its end
    return window["first"] + first, window["first"] + last


def text_tokens(window: dict[str, Any]) -> Tensor:
    """(T,) bool: the tokens of a window at which an answer can begin or end: those of the text but white space."""
    mask = torch.zeros(len(window["ids"]), dtype=torch.bool)
    mask[window["first"] : -1] = torch.from_numpy(window["offsets"][:, 0] < window["offsets"][:, 1])
    return mask
