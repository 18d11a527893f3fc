"""Word and character error rates: golden values, an edit distance of our own, normalised text, errors shown."""

import json
import sys
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.errors import InputError
from d2v.metrics.asr import error_rates, normalized_error_rate, show_errors, whisper_normalizer


def distance(a, b):
    """Levenshtein's, between two sequences."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, before = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize(
    ("references", "hypotheses", "wer"),
    [
        (["a b c", "d"], ["a b", "d e f"], 0.75),  # 3 edits over 4 words; the mean of the clips' rates is 1.1667
        (["a c", ""], ["a b", "x"], 1.0),  # as the `wer` of evaluate: an insertion where nothing was said counts
        (["the cat sat"], ["the cat sat"], 0.0),
        (["one two"], [""], 1.0),
        (["one"], ["two three four"], 3.0),
    ],
)
def test_golden_values(references, hypotheses, wer):
    assert error_rates(references, hypotheses)["wer"] == pytest.approx(wer)


def test_characters():
    # kitten -> sitting is 3 edits; spaces count as characters: "ab c" -> "abc" is 1. Over 6 + 4 characters.
    assert error_rates(["kitten", "ab c"], ["sitting", "abc"])["cer"] == pytest.approx(4 / 10)


words = st.lists(st.sampled_from(["a", "bb", "cab"]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_edits_of_the_whole_set_over_its_words(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    if not any(references):
        return
    found = error_rates(references, hypotheses)
    edits = sum(distance(r.split(), h.split()) for r, h in pairs)
    assert found["wer"] == pytest.approx(edits / sum(len(r.split()) for r in references))
    assert found["cer"] == pytest.approx(sum(distance(r, h) for r, h in pairs) / sum(map(len, references)))


@pytest.mark.parametrize("references", [[], [""], ["", "  "]])
def test_a_rate_needs_a_word(references):
    with pytest.raises(InputError, match="no reference has a word"):
        error_rates(references, ["a"] * len(references))


def test_rows_have_to_match():
    with pytest.raises(ValueError):
        error_rates(["a", "b"], ["a"])
    with pytest.raises(ValueError):
        show_errors(["a", "b"], ["a"])


def test_spelling_and_fillers_do_not_count():
    references = ["Mr. Smith's colour, um, isn't twenty-five dollars [laughs].", "He won't GO!", "four five"]
    hypotheses = ["mister smith is color is not $25", "he will not go", "four five six"]
    found = normalized_error_rate(references, hypotheses, whisper_normalizer())
    # 7, 4 and, since successive digits are one number, 1 word; of these "45" instead of "456" is wrong.
    assert found == {"wer_normalized": pytest.approx(1 / 12)}
    assert error_rates(references, hypotheses)["wer"] > 0.5


def test_references_that_normalise_to_nothing_are_left_out():
    found = normalized_error_rate(["um", "[noise]", "yes it is"], ["hello", "", "yes is"], whisper_normalizer())
    assert found == {"wer_normalized": pytest.approx(1 / 3)}
    with pytest.raises(InputError, match="no reference has a word"):
        normalized_error_rate(["um"], ["hello"], whisper_normalizer())


def test_the_normaliser_is_the_one_that_whisper_is_known_by():
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spellings = json.loads(files("whisper_normalizer").joinpath("normalizers/english.json").read_text("utf-8"))
    theirs, ours = EnglishTextNormalizer(spellings), whisper_normalizer()
    for text in (
        "Dr. O'Neil paid $3.50 on the 2nd of May, nineteen eighty-four; (aside) hmm...",
        "They're organising the theatre's programme: one oh one, double seven, 20%",
        "IT'S A QUARTER PAST THREE AND I'D BEEN GONE",
        "café naïve — two and a half million pounds",
    ):
        assert ours(text) == theirs(text)


def test_a_missing_normaliser_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[whisper\]" in the clone of d2v'):
        whisper_normalizer()


def test_errors_are_marked():
    shown = show_errors(["one two three", "four", "", "five"], ["one too", "four four", "six", "five"])
    assert shown.split("\n\n") == [
        "REF: one two three\nHYP: one too *****\n           S     D",
        "REF: four ****\nHYP: four four\n             I",
        "REF: (nothing)\nHYP: six",
        "REF: five\nHYP: five",
    ]


def test_ten_pairs_at_the_most():
    numbers = [str(i) for i in range(12)]
    assert show_errors(numbers, numbers).count("REF") == 10
    assert show_errors(numbers, numbers, most=2) == "REF: 0\nHYP: 0\n\nREF: 1\nHYP: 1"
    assert show_errors([], []) == ""


def test_a_lost_clip_is_shown():
    shown = show_errors(["one two"], [""])
    assert "REF: one two" in shown and "D" in shown.splitlines()[-1]
