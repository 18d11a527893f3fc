"""`recipes/multiple_choice.py` from end to end on tiny data."""

import datasets
import numpy as np
import pytest
import torch

from d2v.errors import InputError
from d2v.models.text_heads import Data2VecTextForMultipleChoice
from d2v.processors.text import Tokenizer
from tests.recipes.common import evaluates_to_the_same, goes_on_exactly, logs_its_loss, predictions, runner
from tests.tiny import TINY_TEXT, sentences

run = runner("multiple_choice")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=290", "--data.max_length=48", "--data.batch_size=4", "--optim.lr=2e-3"]
SMALL += ["--run.log_every=1"]
LISTS = ["--data.prompt_column=question", "--data.start_column=null", "--data.choice_columns=[answers]"]
COUNTS = {"train": 16, "validation": 4, "test": 5}


def swag(seed: int) -> dict:
    """A row with SWAG's columns; the right ending is the one about birds."""
    first, *others = [text.replace("bird", "dog") for text in sentences(4, seed)]
    label = seed % 4
    endings = [*others[:label], "sees the small bird", *others[label:]]
    return {"id": f"row-{seed}", "sent1": first, "sent2": "the cat", "label": label} | {
        f"ending{i}": ending for i, ending in enumerate(endings)
    }


def listed(seed: int) -> dict:
    """A row with a list of two to five answers of different lengths."""
    row, count = swag(seed), 2 + seed % 4
    answers = [row["ending0"], " ".join(sentences(3, seed)), "no", "the dog", "the old cat"][: count - 1]
    answers.insert(label := seed % count, "sees the small bird")
    return {"question": row["sent1"], "answers": answers, "label": str(label)}


def write(folder, make=swag, **changes):
    """Parquet files."""
    folder.mkdir(parents=True)
    for first, (split, count) in enumerate(COUNTS.items()):
        rows = [make(100 * first + i) | changes.get(split, {}) for i in range(count)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "swag")


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "lists", listed)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def predict(model, data, out, *args) -> list[dict]:
    run("--mode=predict", f"--model={model}", f"--data.path={data}", f"--run.out={out}", *args)
    return predictions(out)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert {"results.json", "predictions.jsonl", "curves.png", "best"} <= {path.name for path in out.iterdir()}
    rows = predictions(out)
    assert [row["reference"] for row in rows] == [swag(200 + i)["label"] for i in range(5)]
    assert [row["id"] for row in rows] == [f"row-{200 + i}" for i in range(5)]
    for i, row in enumerate(rows):
        assert row["choice"] == np.argmax(row["scores"]) and sum(row["scores"]) == pytest.approx(1, abs=1e-5)
        assert row["text"] == f"the cat {swag(200 + i)['ending' + str(row['choice'])]}"
    assert results["accuracy"] == np.mean([row["choice"] == row["reference"] for row in rows])
    assert (results["split"], results["examples"]) == ("test", 5)


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}", "--data.max_length=48"], tmp_path)


def test_scores_are_those_of_the_documented_class_there_and_here(trained, data):
    import transformers

    theirs = transformers.AutoModelForMultipleChoice.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    row = swag(200)
    pairs = [[row["sent1"]] * 4, [f"the cat {row[f'ending{i}']}" for i in range(4)]]
    batch = {key: value[None] for key, value in tokenizer(*pairs, padding=True, return_tensors="pt").items()}
    ours = Data2VecTextForMultipleChoice.from_pretrained(trained[0] / "best")
    found = predictions(trained[0])[0]["scores"]
    for model in (theirs, ours):
        assert model(**batch).logits.softmax(-1)[0].tolist() == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("batch", [["--data.batch_size=1"], ["--data.batch_size=100"]])
def test_what_it_is_batched_with_changes_nothing(batch, trained, lists, tmp_path):
    """Neither the padded length nor how many choices others have moves a row's choice."""
    args = [*LISTS, "--data.batch_size=3", "--data.max_length=48"]
    rows = predict(trained[0] / "best", lists, tmp_path / "a", *args)
    others = predict(trained[0] / "best", lists, tmp_path / "b", *args, *batch)
    assert [len(row["scores"]) for row in rows] == [2 + (200 + i) % 4 for i in range(5)]
    for row, other in zip(rows, others, strict=True):
        assert row["choice"] == other["choice"] and row["scores"] == pytest.approx(other["scores"], abs=2e-6)
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)


def test_predict_needs_no_labels(trained, data, tmp_path):
    table = datasets.Dataset.from_parquet(str(data / "test.parquet")).remove_columns("label")
    table.to_csv(tmp_path / "new.csv")
    rows = predict(trained[0] / "best", tmp_path / "new.csv", tmp_path / "out", "--data.max_length=48")
    assert [row["choice"] for row in rows] == [row["choice"] for row in predictions(trained[0])]
    assert set(rows[0]) == {"id", "choice", "text", "scores"}


@pytest.mark.parametrize("kind", ["swag", "lists"])
def test_a_stopped_run_goes_on_exactly(kind, data, lists, tmp_path):
    source = [f"--data.path={data}"] if kind == "swag" else [f"--data.path={lists}", *LISTS]
    goes_on_exactly(run, [*SMALL, *source], tmp_path)


@pytest.mark.parametrize("kind", ["swag", "lists"])
def test_it_learns_to_look_for_birds(kind, data, lists, tmp_path):
    source = [f"--data.path={data}"] if kind == "swag" else [f"--data.path={lists}", *LISTS]
    steps = ["--run.max_steps=60", "--run.eval_every=20", "--arch.hidden_dropout_prob=0.0"]
    assert run(*SMALL, *source, *steps, f"--run.out={tmp_path}")["accuracy"] == 1


def test_adapters(trained, data, tmp_path):
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}", "--lora.rank=2", "--data.max_length=48"]
    results = run(*args, f"--run.out={tmp_path}", "--run.max_steps=2", "--optim.lr=1e-2")
    assert (tmp_path / "best/adapter/adapter_model.safetensors").is_file()
    again = ["--mode=evaluate", f"--model={tmp_path / 'best'}", f"--data.path={data}", "--data.max_length=48"]
    assert run(*again, f"--run.out={tmp_path / 'again'}")["accuracy"] == results["accuracy"]


def test_the_demo_has_the_columns_it_says(tmp_path):
    few = ["--data.max_train_samples=8", "--data.max_validation_samples=4", "--data.max_test_samples=3"]
    assert run(*few, f"--run.out={tmp_path}", "--run.max_steps=1")["examples"] == 3


def test_long_texts_are_cut_and_counted(data, tmp_path, capsys):
    few = [f"--data.path={data}", f"--run.out={tmp_path}", "--run.max_steps=1"]
    run(*SMALL, *few, "--data.max_length=512", "--arch.max_position_embeddings=14")
    assert "train: 64 of 64 texts cut to 12 tokens" in capsys.readouterr().out
    tokenizer = Tokenizer.from_pretrained(tmp_path / "best")
    ids = torch.tensor([tokenizer([swag(0)["sent1"]], [swag(0)["ending0"]], max_length=12)[0].ids])
    Data2VecTextForMultipleChoice.from_pretrained(tmp_path / "best")(ids[None])  # fits


BAD = {
    "label": ({"train": {"label": 4}}, [], "train, row 0: label is 4; should be the number of a choice, 0 to 3"),
    "empty": ({"validation": {"ending2": ""}}, [], "validation, row 0: choice 2 is ''; should be text"),
    "prompt": ({}, ["--data.prompt_column=question"], r"train: no column 'question' \(data.prompt_column\)"),
    "choices": ({}, ["--data.choice_columns=[ending0,ending7]"], r"no column 'ending7' \(data.choice_columns\)"),
    "a list": ({}, ["--data.choice_columns=[ending0]"], "ending0 is .*; should be a list of texts"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case, tmp_path):
    changes, args, message = BAD[case]
    data = write(tmp_path / "data", **changes)
    with pytest.raises(InputError, match=message):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", *args)
