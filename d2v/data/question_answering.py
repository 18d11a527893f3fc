"""Questions about texts, as in SQuAD: reading them, cutting texts into windows, the tokens of an answer.

An answer is a part of the text, from one character to before another.
Shapes: T tokens, C tokens of the text.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from d2v.config import Data
from d2v.data.load import read, row_names
from d2v.data.text import ROWS
from d2v.errors import InputError
from d2v.processors.text import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

Span = tuple[int, int]


def read_questions(data: Data) -> dict[str, "Dataset"]:
    """All splits of a source; the files of SQuAD's authors too: a folder with `train-v2.0.json` and `dev-v2.0.json`.

    Such a file is an object with `data`, a list of articles, or of questions as Hugging Face's scripts take them.
    """
    import datasets

    path = Path(data.path)
    files = [path] if path.is_file() else sorted(path.glob("*.json"))
    articles = {file: read_articles(file) for file in files if file.suffix == ".json"}
    if not articles or None in articles.values():
        return read(data)
    splits: dict[str, list] = {}
    for file, listed in articles.items():
        split = "validation" if re.search("dev|valid", file.stem) else "test" if "test" in file.stem else "train"
        try:
            splits.setdefault(split, []).extend(questions_of(listed))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file}: should be data[].paragraphs[].qas[], as in SQuAD's files ({error!r})") from error
    return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}


def read_articles(file: Path) -> list | None:
    """What a JSON file has as `data`; None if it is of another form."""
    try:
        content = json.loads(file.read_text("utf-8"))
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
                row = {"id": question["id"], "title": article.get("title", ""), "context": paragraph["context"]}
                row["question"] = question["question"]
                if "answers" in question:
                    answers = [] if question.get("is_impossible") else question["answers"]
                    row["answers"] = {key: [answer[key] for answer in answers] for key in ("text", "answer_start")}
                yield row


def check_questions(splits: dict[str, "Dataset"], columns: dict[str, str], *, unanswerable: bool) -> None:
    """Raise InputError for the first row that cannot be used, or name of a row that another has.

    Args:
        splits: from `d2v.data.load.load`.
        columns: `question`, `context` and, where they are known, `answers` -> the column's name; in this order.
        unanswerable: there are questions without an answer.
    """
    for split, rows in splits.items():
        names = set()
        for name in row_names(rows) if split != "train" else ():
            if name in names:
                raise InputError(f"{split}: two questions have the id {name!r}; ids should differ")
            names.add(name)
        for i, row in enumerate(rows.select_columns(list(columns.values()))):
            question, context, *answers = (row[column] for column in columns.values())
            problem = question_problem(question, context)
            if answers and not problem:
                problem = answers_problem(answers[0], context, unanswerable=unanswerable, learn=split == "train")
            if problem:
                raise InputError(f"{split}, row {i}: {problem}")


def question_problem(question: Any, context: Any) -> str | None:
    """Why a question about a text cannot be answered, or None."""
    for name, text in ("question", question), ("context", context):
        if not isinstance(text, str) or not text.strip():
            return f"the {name} is {text!r:.40}; should be text"
    return None


def answers_problem(answers: Any, context: str, *, unanswerable: bool, learn: bool) -> str | None:
    """Why a question's answers cannot be learnt from or scored by, or None.

    Args:
        answers: `text` and `answer_start`, a list each.
        context: the text that they are from.
        unanswerable: there need not be any.
        learn: they have to be where they say they are.
    """
    texts, starts = (answers.get(key) if isinstance(answers, dict) else None for key in ("text", "answer_start"))
    if not isinstance(texts, list) or (learn and (not isinstance(starts, list) or len(starts) != len(texts))):
        return f"answers are {answers!r:.60}; should be lists 'text' and 'answer_start' of one length"
    if not texts:
        return None if unanswerable else "no answer; --data.unanswerable true is for questions that have none"
    for text, start in zip(texts, starts if learn else [None] * len(texts), strict=True):
        if not isinstance(text, str) or (learn and not text.strip()):
            return f"the answer {text!r:.40} should be text"
        if learn and (not isinstance(start, int) or start < 0 or not context.startswith(text, start)):
            other = context[start : start + len(text)] if isinstance(start, int) and start >= 0 else None
            return f"the answer {text!r:.40} should begin at character {start} of its context, where {other!r:.40} is"
    return None


def question_windows(
    questions: Sequence[str], contexts: Sequence[str], tokenizer: Tokenizer, max_length: int, stride: int, split: str
) -> list[dict[str, Any]]:
    """Questions with the windows of their texts, as `<s> question </s></s> window </s>`.

    Args:
        questions: rows; white space around them is left out.
        contexts: rows.
        tokenizer: of the model.
        max_length: most tokens, of question and window.
        stride: tokens that a window shares with the one before it.
        split: its name, for messages.

    Returns:
        For each window `row`, the number of its question, `ids` (T,) int32, `first`, its text's first token, and
        `offsets` (C, 2) int32, from which to before which character of the text each token is.

    Raises:
        InputError: a question leaves no room for a window.
    """
    windows = []
    for done in range(0, len(questions), ROWS):
        part = slice(done, done + ROWS)
        options = {"max_length": max_length, "truncation": "only_second", "stride": stride}
        try:
            encodings = tokenizer([text.strip() for text in questions[part]], contexts[part], **options)
        except InputError as error:
            raise InputError(f"{split}, rows from {done}: {error} (data.max_length, data.stride)") from error
        for row, encoding in enumerate(encodings, done):
            for window in (encoding, *encoding.overflowing):
                first = window.sequence_ids.index(1)
                offsets = np.array(window.offsets[first:-1], np.int32)
                windows.append({"row": row, "ids": np.array(window.ids, np.int32), "first": first, "offsets": offsets})
    return windows


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
