"""Transcripts: whose vocabulary, what options change of it, which references do not count, and what is said of them."""

from dataclasses import replace

import pytest
import torch

from d2v.data.ctc import TranscriptData, count_references, ctc_tokenizer, speech_rows
from d2v.data.load import load
from d2v.decode.ctc import fit_vocabulary, transcribe
from d2v.decode.ctc_lm import NEVER
from d2v.errors import InputError
from d2v.metrics.asr import transcript_metrics
from d2v.models.audio import Data2VecAudioConfig
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.ctc import CTCTokenizer
from tests.helpers import make_job, make_split
from tests.tiny import speech

UPPER = ["IT'S", "HELLO"]


@pytest.fixture
def model(tmp_path):
    CTCTokenizer.from_texts(UPPER, case="upper").save_pretrained(tmp_path)
    return str(tmp_path)


def tokenizer(texts, mode="train", model=None, **options):
    job = make_job(TranscriptData(**options), mode, model=model)
    return ctc_tokenizer(job, {"train": make_split(text=texts)}), [fact["line"] for fact in job.facts]


def test_a_new_vocabulary_is_said():
    made, (line,) = tokenizer(["abc" * 10, "ab [x]", None])
    assert len(made) == 9 and line.startswith("vocabulary: 6 characters of train's transcripts, of which 3 are there")
    assert ": [ ] x (data.case, data.remove, data.replace and data.form change it)" in line
    assert tokenizer(["ab" * 10])[1] == ["vocabulary: 2 characters of train's transcripts"]
    assert "[" not in tokenizer(["abc" * 10, "ab [x]"], remove="[]")[0].vocab


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_options_count_with_a_models_vocabulary_too(mode, model):
    text = ["hello, it\u2019s"]
    plain, facts = tokenizer(text, mode, model)
    assert plain.unknown(text[0]) == {",", "\u2019"} and facts == []  # its letters are capitals
    changed, _ = tokenizer(text, mode, model, remove=",", replace={"\u2019": "'"})
    assert changed.unknown(text[0]) == set() and changed.normalize(text[0]) == "HELLO IT'S"
    assert changed.vocab == plain.vocab
    assert tokenizer(text, mode, model, case="keep")[0].unknown("hello") == set("helo")
    assert tokenizer(text, mode, model, form="NFKC")[0].form == "NFKC"


def test_a_vocabulary_grows_if_asked(model):
    old = CTCTokenizer.from_pretrained(model)
    grown, (line,) = tokenizer(["HELLO \u00c9 W"], model=model, vocabulary="extend")
    assert grown.tokens == [*old.tokens, "W", "\u00c9"]
    assert line == f"vocabulary: the model's {len(old)} tokens and 2 of train: W \u00c9"
    assert tokenizer(["HELLO"], model=model, vocabulary="extend") == (old, [])
    assert tokenizer(["xy"], model=model, vocabulary="train")[0].tokens == ["<pad>", "<unk>", "|", "x", "y"]
    assert tokenizer(["xy"], "evaluate", model, vocabulary="train")[0] == old


def test_references_that_do_not_count_are_left_out_and_counted():
    job = make_job(TranscriptData(ignore_references=["<unk>", "ignore"]), "evaluate")
    split = make_split("test", text=["a b", "ignore", "", " <unk> ", "to ignore", None])
    kept = count_references(job, split)
    assert kept.column("text") == ["a b", "", "to ignore", None]
    assert [(fact["fact"], fact["rows"], fact["of"]) for fact in job.facts] == [
        ("ignored references", 2, 6),
        ("empty transcripts", 1, 6),
    ]


def test_what_stands_between_words_is_said(tmp_path):
    speech(tmp_path / "data", train=3, validation=2)
    job = make_job(TranscriptData(path=str(tmp_path / "data")))
    splits = load(job, None, inputs={"audio": "audio"}, targets={"text": "text"})
    marked = {name: split.table.remove_columns("text") for name, split in splits.items()}
    marked = {name: table.add_column("text", ["ab", "a|b", "a|b"][: len(table)]) for name, table in marked.items()}
    splits = {name: replace(split, table=marked[name]) for name, split in splits.items()}
    speech_rows(job, splits, AudioFeatureExtractor(), CTCTokenizer.from_texts(["ab"]), Data2VecAudioConfig())
    lines = [fact["line"] for fact in job.facts if fact["fact"] == "delimiters"]
    assert lines[0] == "train: 2 of 3 transcripts have a '|', which is read as a space" and len(lines) == 2


def test_texts_without_spaces_are_said():
    job = make_job(TranscriptData(), "evaluate")
    count_references(job, make_split("test", text=["\u4eca\u5929\u5929\u6c14\u5f88\u597d\u6211\u4eec\u51fa\u53bb"] * 3))
    assert "--run.metric cer chooses by characters" in job.facts[0]["line"]
    job = make_job(TranscriptData(), "evaluate")
    count_references(job, make_split("test", text=["two", "seven words and more", "white\tspace\nof any kind"]))
    assert job.facts == []


@pytest.mark.parametrize("head", [4, 6, 8])
def test_a_head_and_a_vocabulary_of_other_sizes(head):
    """Six tokens: what has no token is never written, what has no row neither; no crash."""
    made = CTCTokenizer.from_texts(["abc"])
    logits = torch.zeros(1, 2, head)
    logits[0, :, -1] = 5.0  # the last row is the best, with or without a token
    logits[0, :, 3] = 1.0
    fitted = fit_vocabulary(logits, len(made))
    assert fitted.shape == (1, 2, 6) and torch.equal(fitted[..., :4], logits[..., :4])
    assert head > 4 or (fitted[..., 4:] == NEVER).all()
    (row,) = transcribe(logits, torch.tensor([2]), made, 0.02, search=lambda logits, _: [str(logits.shape[-1])])
    assert row["text"] == {4: "a", 6: "c", 8: "a"}[head] and row["text_lm"] == "6"


def test_a_right_answer_is_right():
    """Reference and hypothesis go through the same function."""
    made = CTCTokenizer.from_texts(["t\u02b0a"])
    labels = made.encode("t\u02b0a")
    logits = torch.nn.functional.one_hot(torch.tensor([labels]), len(made)).float() * 9
    predicted = transcribe(logits, torch.tensor([len(labels)]), made, 0.02)
    assert transcript_metrics([made.normalize("t\u02b0a")], predicted) == {"wer": 0, "cer": 0}
    kept = CTCTokenizer(made.vocab, form="NFKC")  # whose references lose what the vocabulary writes
    predicted = transcribe(logits, torch.tensor([len(labels)]), kept, 0.02)
    assert transcript_metrics([kept.normalize("t\u02b0a")], predicted) == {"wer": 0, "cer": 0}


def test_a_model_without_a_vocabulary_is_trained_first(tmp_path):
    with pytest.raises(InputError, match="no vocab.json, so it cannot write yet"):
        tokenizer(["a"], "evaluate", str(tmp_path))


def test_a_vocabulary_of_letters_and_accents():
    """Others' vocabularies may have a letter and its accent apart: texts are composed all the same."""
    vocab = {"<pad>": 0, "<unk>": 1, "|": 2, "e": 3, "\u0301": 4, "o": 5}
    made = CTCTokenizer(vocab)
    assert made.encode("\u00e9o") == made.encode("e\u0301o") == [3, 4, 5] and made.unknown("\u00e9") == set()
    assert made.normalize(made.decode([3, 4, 5], group=False)) == made.normalize("\u00e9o") == "\u00e9o"
    assert made.unknown("\u00e8") == {"\u00e8"} and made.encode("\u00e8") == [1]
