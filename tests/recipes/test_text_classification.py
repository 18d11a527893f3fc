"""`recipes/text_classification.py` from end to end on tiny data."""

import csv
import json

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d2v.errors import InputError
from tests.helpers import tiny_reader
from tests.recipes.common import (
    evaluates_to_the_same,
    goes_on_exactly,
    logs_its_loss,
    mean_average_precision,
    predictions,
    repeats_exactly,
    runner,
)
from tests.tiny import TINY_TEXT, name_splits, sentences

run = runner("text_classification")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=300", "--data.batch_size=4", "--optim.lr=2e-3", "--run.log_every=1"]
SPLITS = {"train": 16, "validation": 4, "test": 5}
NLI = ["entailment", "neutral", "contradiction"]


def says(i: int) -> str:
    """A sentence with "red" in every other, all of one length: batches are of rows of similar length."""
    return sentences(1, seed=i)[0].replace("red", "blue") + (" red" if i % 2 else " old")


def write(folder, columns=lambda i: {"text": says(i), "label": ("no", "yes")[i % 2]}, splits=SPLITS, features=None):
    """Parquet files, by default with `text` and `label`."""
    folder.mkdir(parents=True)
    for split, count in splits.items():
        table = datasets.Dataset.from_list([columns(i) for i in range(count)])
        for name, feature in (features or {}).items():
            table = table.cast_column(name, feature)
        table.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "two")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    names = {"results.json", "predictions.jsonl", "confusion.png", "curves.png", "best"}
    assert names <= {path.name for path in out.iterdir()}
    assert set(results) >= {"accuracy", "macro_f1"} and (results["split"], results["examples"]) == ("test", 5)
    rows = predictions(out)
    assert [row["reference"] for row in rows] == ["no", "yes", "no", "yes", "no"]
    assert [row["id"] for row in rows] == list("01234")
    assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    assert results["accuracy"] == np.mean([row["label"] == row["reference"] for row in rows])


def test_two_runs_that_differ_in_their_folder_alone_differ_in_no_weight(trained, data, tmp_path):
    args = [*SMALL, f"--data.path={data}", "--run.max_steps=6", "--run.eval_every=3"]
    repeats_exactly(run, trained[0], args, tmp_path / "again")


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)


def test_predict_needs_no_labels(trained, tmp_path):
    (tmp_path / "new.csv").write_text('text,place\n"the old, old bird",3\n"the cat",4\n', "utf-8")
    best, file = trained[0] / "best", tmp_path / "new.csv"
    run("--mode=predict", f"--model={best}", f"--data.path={file}", f"--run.out={tmp_path / 'out'}")
    rows = predictions(tmp_path / "out")
    assert [row["id"] for row in rows] == ["0", "1"] and all(set(row) == {"id", "label", "scores"} for row in rows)


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    for i, row in enumerate(predictions(trained[0])):
        scores = model(**tokenizer(says(i), return_tensors="pt")).logits.softmax(-1)[0]
        found = [row["scores"][model.config.id2label[i]] for i in range(2)]
        assert found == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("lora", [[], ["--lora.rank=2"]])
def test_a_stopped_run_goes_on_exactly(lora, data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", *lora], tmp_path)


def test_it_learns_to_find_a_word(data, tmp_path):
    steps = ["--run.max_steps=60", "--run.eval_every=20", "--arch.hidden_dropout_prob=0.0", "--data.vocab_size=400"]
    assert run(*SMALL, *steps, f"--data.path={data}", f"--run.out={tmp_path}")["accuracy"] == 1


def test_an_adapter_learns_alone(trained, data, tmp_path):
    before = load_file(trained[0] / "best/model.safetensors")
    args = [
        f"--model={trained[0] / 'best'}",
        "--lora.rank=2",
        "--lora.alpha=16",
        "--optim.lr=1e-2",
        "--run.max_steps=4",
    ]
    results = run(*args, f"--data.path={data}", f"--run.out={tmp_path / 'lora'}")
    after = load_file(tmp_path / "lora/best/model.safetensors")  # merged: a plain model again
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    ends = ("self.query.weight", "self.value.weight")
    assert before.keys() == after.keys()
    assert moved == {name for name in before if name.endswith(ends) or name.startswith("classifier.")}
    config = json.loads((tmp_path / "lora/best/adapter/adapter_config.json").read_text("utf-8"))
    assert config["r"] == 2 and config["modules_to_save"] == ["classifier.dense", "classifier.out_proj"]
    evaluates_to_the_same(run, tmp_path / "lora", results, [f"--data.path={data}"], tmp_path / "again")


def test_two_texts_of_a_csv(tmp_path):
    for split, count in SPLITS.items():
        with (tmp_path / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["a", "b", "label"])
            writer.writerows(
                [says(i), says(i + j), ("different", "same")[j == 0]] for i in range(count) for j in (0, 1)
            )
    args = [f"--data.path={tmp_path}", "--data.text_column=a", "--data.pair_column=b"]
    results = run(*SMALL, *args, f"--run.out={tmp_path / 'out'}", "--run.max_steps=2", "--data.metrics=[f1,accuracy]")
    assert results["examples"] == 10 and set(results) >= {"f1", "accuracy"} and "macro_f1" not in results
    again = [*args, "--data.metrics=[f1,accuracy]"]
    evaluates_to_the_same(run, tmp_path / "out", results, again, tmp_path / "again")
    # the second text is read: another one changes the scores
    before, after = tmp_path / "out", tmp_path / "swapped"
    run("--mode=evaluate", f"--model={before / 'best'}", *args, "--data.pair_column=a", f"--run.out={after}")
    assert [row["scores"] for row in predictions(before)] != [row["scores"] for row in predictions(after)]


def test_values_are_regressed(tmp_path):
    """17 rows to score in batches of 4: the last is a single one, whose value must not lose its dimension."""
    data = write(
        tmp_path / "data", lambda i: {"text": says(i), "label": i % 2 * 2.5}, {"train": 64, "validation": 8, "test": 17}
    )
    args = [f"--data.path={data}", "--data.problem_type=regression"]
    steps = ["--run.max_steps=80", "--run.eval_every=20", "--arch.hidden_dropout_prob=0.0", "--data.vocab_size=400"]
    results = run(*SMALL, *args, *steps, f"--run.out={tmp_path / 'out'}")
    assert results["pearson"] > 0.9 and set(results) >= {"spearmanr"} and "accuracy" not in results
    rows = predictions(tmp_path / "out")
    assert len(rows) == 17 and all(set(row) == {"id", "value", "reference"} for row in rows)
    evaluates_to_the_same(run, tmp_path / "out", results, args[:1], tmp_path / "again")  # the model knows what it tells


def test_several_labels(tmp_path):
    labels = [["red"], ["old"], ["old", "red"], []]
    data = write(tmp_path / "data", lambda i: {"text": says(i), "label": labels[i % 4]})
    args = [f"--data.path={data}", "--data.problem_type=multi_label"]
    results = run(*SMALL, *args, f"--run.out={tmp_path / 'out'}", "--run.max_steps=3")
    assert results["map"] == pytest.approx(mean_average_precision(predictions(tmp_path / "out")))
    assert "micro_f1" in results and "accuracy" not in results
    for row in predictions(tmp_path / "out"):
        assert row["labels"] == [name for name in ("old", "red") if row["scores"][name] > 0.5]
    evaluates_to_the_same(run, tmp_path / "out", results, args[:1], tmp_path / "again")


def test_all_classes_are_known_from_their_type(tmp_path):
    listed = {"label": datasets.ClassLabel(names=["negative", "neutral", "positive"])}
    data = write(tmp_path / "data", lambda i: {"text": says(i), "label": 2 * (i % 2)}, features=listed)
    run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    row = predictions(tmp_path / "out")[1]
    assert list(row["scores"]) == ["negative", "neutral", "positive"] and row["reference"] == "positive"


# GLUE


@pytest.fixture(scope="module")
def mnli(tmp_path_factory):
    """Data like MNLI's, with the classes in its order, which is not the alphabet's, and a test without labels."""

    def row(i):
        return {"premise": says(i), "hypothesis": says(3 * i), "label": i % 3, "idx": i}

    splits = dict.fromkeys(["train", "validation_matched"], 12) | {"validation_mismatched": 9, "test_matched": 6}
    listed = {"label": datasets.ClassLabel(names=NLI)}
    folder = write(tmp_path_factory.mktemp("glue") / "mnli", row, splits, listed)
    test = datasets.Dataset.from_parquet(str(folder / "test_matched.parquet")).remove_columns("label")
    test.add_column("label", [-1] * 6).cast_column("label", listed["label"]).to_parquet(folder / "test_matched.parquet")
    name_splits(folder, splits)
    return folder


MNLI = ["--config=recipes/configs/text_classification/mnli.yaml", "--data.name=null"]


@pytest.fixture(scope="module")
def reader_of_mnli(mnli, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnli")
    args = [f"--model={tiny_reader(folder / 'model')}", f"--data.path={mnli}", "--run.max_steps=3"]
    return folder / "out", run(*MNLI, *args, f"--run.out={folder / 'out'}")


def test_matched_and_mismatched_are_both_kept(reader_of_mnli, mnli, tmp_path):
    out, results = reader_of_mnli
    assert results["examples"] == 12
    files = {"accuracy": "predictions.jsonl", "accuracy_mm": "predictions_mm.jsonl"}
    for (key, name), count in zip(files.items(), (12, 9), strict=True):
        rows = [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]
        assert len(rows) == count
        assert results[key] == pytest.approx(np.mean([row["label"] == row["reference"] for row in rows]))
    assert list(predictions(out)[0]["scores"]) == NLI
    evaluates_to_the_same(run, out, results, [*MNLI, f"--data.path={mnli}"], tmp_path)


def test_unlabelled_test_splits_are_predicted(reader_of_mnli, mnli, tmp_path):
    args = [*MNLI, "--mode=predict", f"--model={reader_of_mnli[0] / 'best'}", f"--data.path={mnli}"]
    run(*args, "--data.test_split=test_matched", f"--run.out={tmp_path}")
    rows = predictions(tmp_path)
    assert [row["id"] for row in rows] == list("012345") and {row["label"] for row in rows} <= set(NLI)
    with pytest.raises(
        InputError, match="test_matched, row 0: label is empty or says that there is no label; 6 such rows"
    ):
        args[2] = "--mode=evaluate"
        run(*args, "--data.test_split=test_matched", f"--run.out={tmp_path / 'b'}")


def test_the_diagnostic_set_is_scored_by_the_model_for_mnli(reader_of_mnli, tmp_path):
    columns = ["premise", "hypothesis", "label"]
    rows = ["\t".join([says(i), says(i + 1), NLI[i % 3]]) for i in range(9)]
    (tmp_path / "ax.tsv").write_text("\n".join(["\t".join(columns), *rows]), "utf-8")
    args = [*MNLI, "--mode=evaluate", f"--model={reader_of_mnli[0] / 'best'}", f"--data.path={tmp_path / 'ax.tsv'}"]
    args += ["--data.metrics=[matthews_correlation]", "--data.also={}", "--data.test_split=test"]
    results = run(*args, f"--run.out={tmp_path / 'out'}")
    assert results["examples"] == 9 and -1 <= results["matthews_correlation"] <= 1


# Bad input

BAD = {
    "no column": (lambda i: {"words": says(i), "label": "ab"[i % 2]}, [], r"no column 'text' \(data.text_column\)"),
    "no pair": (
        lambda i: {"text": says(i), "label": "ab"[i % 2]},
        ["--data.pair_column=b"],
        r"train: no column 'b' \(data.pair_column\); there are text, label",
    ),
    "no text": (
        lambda i: {"text": None if i == 3 else says(i), "label": "ab"[i % 2]},
        [],
        "train, row 3: text is None",
    ),
    "empty": (lambda i: {"text": " " if i == 3 else says(i), "label": "ab"[i % 2]}, [], "train, row 3: text is empty"),
    "no label": (
        lambda i: {"text": says(i), "label": None if i == 3 else "ab"[i % 2]},
        [],
        "train, row 3: label is empty or says that there is no label",
    ),
    "fractions": (
        lambda i: {"text": says(i), "label": i / 2},
        [],
        "train, row 1: label is 0.5; should be text or a whole number",
    ),
    "one class": (lambda i: {"text": says(i), "label": "a"}, [], "label has 1 classes: a; should have two or more"),
    "text for a value": (
        lambda i: {"text": says(i), "label": "high"},
        ["--data.problem_type=regression"],
        "train, row 0: label is 'high'; should be a number",
    ),
    "no value": (
        lambda i: {"text": says(i), "label": float("nan") if i == 3 else 1.0},
        ["--data.problem_type=regression"],
        "train, row 3: label is nan; should be a number",
    ),
    "one for several": (
        lambda i: {"text": says(i), "label": "ab"[i % 2]},
        ["--data.problem_type=multi_label"],
        "train, row 0: label is 'a'; should be a list of labels",
    ),
    "wrong figure": (
        lambda i: {"text": says(i), "label": "ab"[i % 2]},
        ["--data.metrics=[pearson]"],
        "data.metrics: pearson is no metric of single_label",
    ),
    "f1 of three": (
        lambda i: {"text": says(i), "label": "abc"[i % 3]},
        ["--data.metrics=[f1]"],
        "f1 is that of one of two classes, and there are 3",
    ),
    "no other split": (
        lambda i: {"text": says(i), "label": "ab"[i % 2]},
        ["--data.also={mm: mismatched}"],
        "no split 'mismatched'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_named(case, tmp_path):
    columns, args, message = BAD[case]
    data = write(tmp_path / "data", columns)
    with pytest.raises(InputError, match=message) as error:
        run(*SMALL, *args, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    assert "\n" not in str(error.value)


def test_a_label_that_train_lacks_is_named(tmp_path):
    data = write(tmp_path / "data")
    strange = datasets.Dataset.from_list([{"text": "a", "label": "maybe"}])
    strange.to_parquet(data / "validation.parquet")
    with pytest.raises(InputError, match="validation, row 0: label 'maybe' is not one of the classes no, yes"):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\ncaf\xe9,x\n".encode("latin-1"), r"a\.csv: not a table of text in UTF-8"),
        (
            "a.jsonl",
            '{"text": "caf\xe9", "label": "x"}\n'.encode("latin-1"),
            r"a\.jsonl: .*line 1 is not UTF-8",
        ),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', "test: label has text and numbers"),
        ("a.csv", b"", r"a\.csv: is empty"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name, content, message, trained, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        run(
            "--mode=evaluate",
            f"--model={trained[0] / 'best'}",
            f"--data.path={tmp_path / name}",
            f"--run.out={tmp_path}",
        )


def test_long_texts_are_cut_with_a_count(trained, tmp_path, capsys):
    (tmp_path / "long.csv").write_text(f"text,label\n{' '.join(sentences(99, 0))},no\nthe cat,no\n", "utf-8")
    args = ["--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path / 'long.csv'}"]
    run(*args, f"--run.out={tmp_path / 'out'}", "--data.max_length=1000")
    assert "test: 1 of 2 texts cut to 512 tokens" in capsys.readouterr().out  # the positions that the model has


def test_long_texts_in_windows(trained, data, tmp_path):
    """Trained on windows, and one prediction a text, which evaluating repeats."""
    args = [*SMALL, f"--data.path={data}", "--data.truncation=windows", "--data.stride=1", "--data.max_length=6"]
    out = tmp_path / "out"
    results = run(*args, f"--run.out={out}", "--run.max_steps=2")
    assert "read in windows" in (out / "data.json").read_text("utf-8")
    assert [row["id"] for row in predictions(out)] == list("01234") and results["examples"] == 5
    evaluates_to_the_same(run, out, results, args, tmp_path / "again")
