"""`recipes/token_classification.py` from end to end on tiny data."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d2v.errors import InputError
from d2v.hub import read_json, write_json
from d2v.metrics.token_classification import token_classification_metrics
from tests.recipes.common import evaluates_to_the_same, figures, goes_on_exactly, logs_its_loss, predictions, runner
from tests.tiny import TINY_TEXT, sentences

run = runner("token_classification")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=290", "--data.max_length=24", "--data.batch_size=8", "--optim.lr=3e-3"]
SMALL += ["--run.log_every=1"]
SPLITS = {"train": 64, "validation": 8, "test": 9}
TAGS = ["DET", "ADJ", "NOUN", "VERB", "DET", "ADJ", "NOUN"]
CHUNKS = ["B-NP", "I-NP", "I-NP", "O", "B-NP", "I-NP", "I-NP"]


def write(folder, tags=TAGS, times=1, **columns):
    """Parquet files with `tokens` and `tags`; sentences several `times` as long."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(SPLITS.items()):
        words = [sentence.split() * times for sentence in sentences(count, seed)]
        table = {"tokens": words, "tags": [list(tags) * times] * count} | columns
        datasets.Dataset.from_dict(table).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "chunks", CHUNKS)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def read_conll(path) -> list[list[list[str]]]:
    """The fields of each line of each sentence."""
    return [
        [line.split(" ") for line in block.split("\n")] for block in path.read_text("utf-8").strip("\n").split("\n\n")
    ]


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    wanted = {"results.json", "predictions.jsonl", "predictions.conll", "confusion.png", "curves.png", "best"}
    assert wanted <= {path.name for path in out.iterdir()}
    assert (results["split"], results["examples"]) == ("test", SPLITS["test"])
    rows = predictions(out)
    assert [" ".join(row["tokens"]) for row in rows] == sentences(SPLITS["test"], seed=2)
    expected = token_classification_metrics(
        [row["reference"] for row in rows], [row["labels"] for row in rows], chunks=True
    )
    assert list(expected) == ["precision", "recall", "f1", "f1_strict", "accuracy"]
    assert {key: results[key] for key in expected} == expected


def test_columns_of_every_word(trained):
    rows = [
        [list(line) for line in zip(row["tokens"], row["reference"], row["labels"], strict=True)]
        for row in predictions(trained[0])
    ]
    assert read_conll(trained[0] / "predictions.conll") == rows


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)


def test_a_word_is_labelled_the_same_in_any_batch(trained, data, tmp_path):
    again = [f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={tmp_path}"]
    results = run("--mode=evaluate", *again, "--data.batch_size=1")
    assert figures(results) == figures(trained[1])


def test_predict_needs_no_labels(trained, tmp_path):
    (tmp_path / "words.jsonl").write_text('{"tokens": ["the", "red", "cat"]}\n{"tokens": ["dog"]}\n', "utf-8")
    args = [f"--model={trained[0] / 'best'}", f"--data.path={tmp_path / 'words.jsonl'}", f"--run.out={tmp_path}"]
    run("--mode=predict", *args)
    rows = predictions(tmp_path)
    assert [set(row) for row in rows] == [{"id", "tokens", "labels"}] * 2 and len(rows[0]["labels"]) == 3
    assert [[word for word, _ in block] for block in read_conll(tmp_path / "predictions.conll")] == [
        ["the", "red", "cat"],
        ["dog"],
    ]


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.AutoModelForTokenClassification.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    assert tokenizer.add_prefix_space
    for row in predictions(trained[0]):
        inputs = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**inputs).logits[0].argmax(-1).tolist()
        words = inputs.word_ids()
        firsts = [words.index(i) for i in range(len(row["tokens"]))]
        assert [model.config.id2label[best[i]] for i in firsts] == row["labels"]


@pytest.mark.parametrize("pieces", ["false", "true"])
def test_a_stopped_run_goes_on_exactly(pieces, data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", f"--data.label_all_pieces={pieces}"], tmp_path)


@pytest.mark.parametrize("chunks", [True, False])
def test_it_learns_the_tags(chunks, tmp_path):
    data = write(tmp_path / "data", CHUNKS if chunks else TAGS)
    steps = ["--run.max_steps=60", "--run.eval_every=20", "--arch.hidden_dropout_prob=0.0"]
    results = run(*SMALL, *steps, f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert results["accuracy"] == 1
    assert results["f1" if chunks else "macro_f1"] == 1 and ("f1_strict" in results) == chunks


@pytest.mark.parametrize("pieces", ["false", "true"])
def test_long_sentences_lose_no_word(pieces, tmp_path):
    """Sentences of 35 words and a model of 16 positions: every word has its label, and all are learnt."""
    data = write(tmp_path / "data", CHUNKS, times=5)
    args = ["--data.max_length=16", "--data.stride=6", f"--data.label_all_pieces={pieces}", f"--data.path={data}"]
    steps = ["--run.max_steps=60", "--run.eval_every=30", "--arch.hidden_dropout_prob=0.0"]
    results = run(*SMALL, *args, *steps, f"--run.out={tmp_path / 'out'}")
    rows = predictions(tmp_path / "out")
    assert [len(row["labels"]) for row in rows] == [35] * SPLITS["test"]
    assert [len(block) for block in read_conll(tmp_path / "out/predictions.conll")] == [35] * SPLITS["test"]
    right = [np.mean(np.array(row["labels"]) == np.array(row["reference"])) for row in rows]
    assert results["accuracy"] == pytest.approx(np.mean(right)) and results["f1"] > 0.95
    # The model is given windows, however long sentences may be: it refuses more than its positions.
    best = [f"--model={tmp_path / 'out/best'}", f"--data.path={data}", "--data.stride=6"]
    again = run("--mode=evaluate", *best, f"--run.out={tmp_path / 'again'}")
    assert figures(again) == figures(results)


def test_words_are_encoded_after_a_space(trained, data, tmp_path):
    """Also with a checkpoint whose tokenizer does not say so, as the released ones do not."""
    model = shutil.copytree(trained[0] / "best", tmp_path / "model")
    config = read_json(model / "tokenizer_config.json")
    write_json(model / "tokenizer_config.json", config | {"add_prefix_space": False})
    results = run("--mode=evaluate", f"--model={model}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert figures(results) == figures(trained[1])


def test_a_new_head_on_a_checkpoint_with_an_adapter(trained, tmp_path):
    """The encoder stays, its adapter and the new head move; the adapter lies beside the merged weights."""
    data = write(tmp_path / "data", TAGS)
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}"]
    results = run(*args, "--lora.rank=2", "--run.max_steps=3", "--optim.lr=1e-2")
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path / "out"))
    moved = {name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])}
    assert moved == {
        name for name in before if any(part in name for part in ("classifier", "query.weight", "value.weight"))
    }
    assert (tmp_path / "out/best/adapter/adapter_model.safetensors").is_file()
    evaluates_to_the_same(run, tmp_path / "out", results, [f"--data.path={data}"], tmp_path / "again")


def test_numbers_and_listed_names(tmp_path):
    names = datasets.List(datasets.ClassLabel(names=["ADJ", "DET", "NOUN", "VERB", "X"]))
    data = write(tmp_path / "data", [1, 0, 2, 3, 1, 0, 2])
    run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'a'}", "--run.max_steps=1")
    assert read_json(tmp_path / "a/best/config.json")["id2label"] == {str(i): str(i) for i in range(4)}
    for split in SPLITS:
        table = datasets.Dataset.from_parquet(str(data / f"{split}.parquet")).cast_column("tags", names)
        table.to_parquet(data / f"{split}.parquet")
    run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'b'}", "--run.max_steps=1")
    assert list(read_json(tmp_path / "b/best/config.json")["id2label"].values()) == names.feature.names
    assert predictions(tmp_path / "b")[0]["reference"] == TAGS


ROW = {"tokens": ["the", "cat"], "tags": ["DET", "NOUN"]}
BAD_ROWS = {
    "a label not in train": ({"tags": ["DET", "VERB"]}, "test, row 1: tags 'VERB' is not one of the classes DET, NOUN"),
    "too few labels": ({"tags": ["DET"]}, "test, row 1: 2 words in tokens, 1 labels in tags"),
    "an empty text": ({"tokens": [], "tags": []}, r"test, row 1: tokens is \[\]; should be a list of words"),
    "an empty word": ({"tokens": ["the", ""]}, "test, row 1: tokens has '' as word 1"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named(case, tmp_path):
    changes, message = BAD_ROWS[case]
    for split in SPLITS:
        rows = [ROW, ROW | changes if split == "test" else ROW]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(InputError, match=message):
        run(*SMALL, f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")


BAD_FILES = {
    "a missing column": ('{"tokens": ["a"]}', "no column 'tags' (data.tags_column); there are tokens"),
    "mixed labels": ('{"tokens": ["a", "b"], "tags": [1, "x"]}', "tags has text and numbers; should be one of the two"),
    "not UTF-8": ('{"tokens": ["caf\xe9"], "tags": ["A"]}', "line 1 is not UTF-8"),
    "one class": ('{"tokens": ["a"], "tags": ["A"]}', "train: tags has 1 classes: A; should have two or more"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_named(case, tmp_path):
    line, message = BAD_FILES[case]
    (tmp_path / "train.jsonl").write_bytes((line + "\n").encode("latin-1") * 30)
    with pytest.raises(InputError) as error:
        run(*SMALL, f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["sentences.txt", "sentences.csv"])
def test_predict_takes_sentences_as_text(trained, tmp_path, name):
    lines = ["ab ba  cab", "[ab] ba"]
    header = ["sentence"] if name.endswith("csv") else []
    (tmp_path / name).write_text("\n".join([*header, *lines]) + "\n", "utf-8")
    out = tmp_path / "out"
    run("--mode=predict", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path / name}", f"--run.out={out}")
    assert [row["tokens"] for row in predictions(out)] == [line.split() for line in lines]
