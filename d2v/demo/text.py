"""The embedded demo sets of text: Python's own documentation, whose labels are what it says of itself.

Nothing is drawn: a checksum decides which split a text is in and what its place there is, so that the content is a pure
function of the version of Python. Each set takes a second or two to make.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

from d2v.demo.docstrings import AREAS, Documented, docstrings, paragraphs, sentences, source_texts, topics

if TYPE_CHECKING:
    from datasets import Dataset

LONGEST = 100  # words of a context
SIGNS = {"": "plain", ",": "comma", ";": "comma", ".": "period", "?": "period", "!": "period", ":": "colon"}
MARKS = "\"'`*()[]"


def docs_classification() -> dict[str, "Dataset"]:
    """Paragraphs of docstrings: `text` and `label`, the area of the standard library that it documents."""
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(AREAS))}
    areas = {paragraph: each.area for each in reversed(docstrings()) for paragraph in paragraphs(each.text)}
    return split(((text, {"text": text, "label": area}) for text, area in areas.items()), features)


def docs_tagging() -> dict[str, "Dataset"]:
    """Paragraphs without capitals and punctuation, as speech recognition leaves them: `tokens` and `tags`.

    A tag names the sign behind its word, and is capitalised where the word is: "However," is `however` with `Comma`,
    and most words are `plain`.
    """
    import datasets

    names = [form for sign in dict.fromkeys(SIGNS.values()) for form in (sign, sign.capitalize())]
    features = {
        "tokens": datasets.List(datasets.Value("string")),
        "tags": datasets.List(datasets.ClassLabel(names=names)),
    }
    rows: dict[tuple[str, ...], tuple[str, dict]] = {}
    for paragraph in all_paragraphs():
        tokens, tags = zip(*strip_words(paragraph), strict=True)
        rows.setdefault(tokens, (" ".join(tokens), {"tokens": tokens, "tags": tags}))
    return split(rows.values(), features)


def docs_questions() -> dict[str, "Dataset"]:
    """Questions about the documentation, as in SQuAD: `id`, `title`, `context`, `question`, `answers`.

    A context is a function with its defaults and its docstring, or a paragraph of the language reference. The answer is
    a sentence or a part of one, the name of an exception, or a default; there always is one.
    """
    import datasets

    texts = {name: datasets.Value("string") for name in ("id", "title", "context", "question")}
    answers = {"text": datasets.List(datasets.Value("string")), "answer_start": datasets.List(datasets.Value("int32"))}
    rows = []
    for documented in docstrings():
        rows += [(documented.text, row | {"title": documented.name}) for row in ask(documented)]
    for paragraph in dict.fromkeys(paragraph for topic in topics() for paragraph in paragraphs(topic)):
        rows += [(paragraph, row | {"title": "language reference"}) for row in ask_if(paragraph)]
    rows = [(text, row | {"id": str(i)}) for i, (text, row) in enumerate(rows)]
    return split(rows, texts | {"answers": answers})


def docs_next() -> dict[str, "Dataset"]:
    """What comes next in a docstring, as in SWAG: `sent1`, four endings `ending0` to `ending3`, and `label`.

    The start is a sentence and the right ending the one after it. The wrong ones are first sentences of three other
    docstrings of the same split: what they are about tells one from another, and so does their style.
    """
    import datasets

    pairs: dict[str, tuple[str, dict[str, str]]] = {}
    starts = set()
    for text in all_docs():
        found = [sentence for paragraph in paragraphs(text) for sentence in sentences(paragraph)]
        for start, ending in pairwise(found):
            short = max(len(sentence.split()) for sentence in (found[0], start, ending)) <= 30
            if short and start not in starts and ending not in pairs:
                starts.add(start)
                pairs[ending] = text, {"sent1": start, "ending": ending, "opening": found[0]}
    choices = [f"ending{i}" for i in range(4)]
    features = {name: datasets.Value("string") for name in ("sent1", *choices)}
    features = datasets.Features(features | {"label": datasets.ClassLabel(names=list("0123"))})
    splits = {}
    texts = dict.fromkeys(("sent1", "ending", "opening"), datasets.Value("string"))
    for name, found in split(pairs.values(), texts).items():
        rows, count = [], len(found)
        for i, row in enumerate(found):
            label = crc32(row["ending"].encode()) % 4
            endings = [found[(i + step) % count]["opening"] for step in (count // 7, count // 3, count // 2)]
            endings.insert(label, row["ending"])
            row = {"sent1": row["sent1"]} | dict(zip(choices, endings, strict=True))
            rows.append(row | {"label": label})
        splits[name] = datasets.Dataset.from_list(rows, features=features)
    return splits


def docs_text() -> dict[str, "Dataset"]:
    """Paragraphs of the docstrings and of the language reference, one a row: `text`."""
    import datasets

    return split(((text, {"text": text}) for text in all_paragraphs()), {"text": datasets.Value("string")})


def documentation() -> dict[str, "Dataset"]:
    """What Python's sources and its language reference say in prose, for pretraining: paragraphs, one a row, `text`.

    Docstrings and comments of all of the standard library are more than the other sets are made of. Nothing that one
    of these tests on is in it, not a sentence.
    """
    import datasets

    rows, text = documentation_paragraphs(), {"text": datasets.Value("string")}
    held_out = len(rows) // 50  # the last ones
    parts = {"train": rows[:-held_out], "validation": rows[-held_out:]}
    return {name: datasets.Dataset.from_dict({"text": part}, datasets.Features(text)) for name, part in parts.items()}


def documentation_paragraphs() -> list[str]:
    """The paragraphs of `documentation`, each once, in an order that only the version of Python decides."""
    tested = {sentence for paragraph in tested_paragraphs() for sentence in sentences(paragraph)}
    found = dict.fromkeys(paragraph for text in [*topics(), *source_texts()] for paragraph in paragraphs(text))
    return [paragraph for paragraph in found if tested.isdisjoint(sentences(paragraph))]


def tested_paragraphs() -> list[str]:
    """The paragraphs of which another set's test has any part."""
    found = [paragraph for text in all_docs() if split_of(text) == "test" for paragraph in paragraphs(text)]
    for paragraph in all_paragraphs():
        plain = " ".join(word for word, _ in strip_words(paragraph))
        if "test" in (split_of(paragraph), split_of(plain)):
            found.append(paragraph)
    return found


def all_docs() -> list[str]:
    """All docstrings, and the language reference by topic."""
    return [documented.text for documented in docstrings()] + topics()


def all_paragraphs() -> list[str]:
    """The paragraphs of `all_docs`, each once."""
    return list(dict.fromkeys(paragraph for text in all_docs() for paragraph in paragraphs(text)))


def split(rows: Iterable[tuple[str, dict[str, Any]]], features: dict[str, Any]) -> dict[str, "Dataset"]:
    """Eight tenths for training, one each for validation and test.

    Args:
        rows: each with the text that decides where it goes: rows of one text are in one split.
        features: of the columns.
    """
    import datasets

    splits: dict[str, list] = {"train": [], "validation": [], "test": []}
    for text, row in sorted(rows, key=lambda pair: crc32(pair[0].encode())):
        splits[split_of(text)].append(row)
    features = datasets.Features(features)
    return {
        name: datasets.Dataset.from_dict({key: [row[key] for row in found] for key in features}, features)
        for name, found in splits.items()
    }


def split_of(text: str) -> str:
    """The split in which a text is, by its checksum."""
    return {0: "test", 1: "validation"}.get(crc32(text.encode()) % 10, "train")


def strip_words(paragraph: str) -> list[tuple[str, str]]:
    """The words of a paragraph without brackets, quotes, signs and capitals at the front, each with its tag."""
    found = []
    for piece in paragraph.split():
        inner = piece.strip(MARKS)
        word = inner.rstrip("".join(SIGNS))
        if re.search(r"\w", word):
            tag, word = SIGNS[inner[len(word) :][:1]], word.strip(MARKS)
            upper = word[0].isupper() and word[1:] == word[1:].lower()  # not IOError, whose capitals are its own
            found.append((word.lower(), tag.capitalize()) if upper else (word, tag))
    return found


def ask(documented: Documented) -> list[dict[str, Any]]:
    """Questions on a function that its docstring or its defaults answer."""
    name, prose = documented.name, " ".join(paragraphs(documented.text))
    call = ", ".join(key if value is None else f"{key}={value}" for key, value in documented.parameters.items())
    context, found = f"{name}({call}). {prose}", sentences(prose)
    if not prose or len(context.split()) > LONGEST:
        return []
    begin = len(context) - len(prose)
    rows = ask_if(context)
    if len(found) > 1 and crc32(context.encode()) % 3 == 0:
        rows.append(question(f"What does {name} do?", context, found[0], begin))
    returned = [sentence for sentence in found[1:] if re.search(r"\breturns?\b", sentence, re.IGNORECASE)]
    if len(returned) == 1:
        rows.append(question(f"What does {name} return?", context, returned[0], context.index(returned[0], begin)))
    raised = list(re.finditer(r"\b[A-Z]\w*(Error|Exception|Iteration)\b", prose))
    if len({match[0] for match in raised}) == 1 and re.search(r"\brais", prose):
        rows.append(question(f"Which exception does {name} raise?", context, raised[0][0], begin + raised[0].start()))
    for key, value in documented.parameters.items():
        if value not in (None, "None") and (start := re.search(rf"\b{key}=", context)):  # None is what most are
            rows.append(question(f"What is {key} by default?", context, value, start.end()))
    return rows


def ask_if(context: str) -> list[dict[str, Any]]:
    """Questions on the conditions of a text."""
    if len(context.split()) > LONGEST:
        return []
    found = re.finditer(r"\bIf ([^.,:]{5,80}), (?:then )?([^.:]{5,200})\.", context)
    return [question(f"What if {match[1]}?", context, match[2], match.start(2)) for match in found]


def question(text: str, context: str, answer: str, start: int) -> dict[str, Any]:
    """A row of SQuAD's."""
    return {"question": text, "context": context, "answers": {"text": [answer], "answer_start": [start]}}
