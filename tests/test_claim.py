"""`python -m benchmarks.claim` from end to end on tiny data: its rows, its verdicts, and that it goes on."""

import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from benchmarks import claim
from d2v.hub import write_json
from d2v.metrics.statistics import class_statistics
from tests.test_compare import write_run
from tests.test_configs import photo


@pytest.mark.parametrize("kind", ["sums", "classes"])
def test_an_arm_is_compared_over_all_its_seeds(kind, tmp_path):
    """Errors of 50 and 45 in a hundred beside 20 and 15: 63 % fewer."""
    runs, rows = {}, 1000
    for arm, errors in {"scratch": (500, 450), "both": (200, 150)}.items():
        for seed, wrong in enumerate(errors):
            right = np.random.default_rng(seed).permutation(rows) >= wrong
            statistics = {"sums": {"wer": np.stack((1.0 - right, np.ones(rows)), 1)}}
            if kind == "classes":
                pairs = ["a"] * rows, [("b", "a")[int(each)] for each in right]
                statistics = class_statistics(*pairs, ["a", "b"])
            ids = [f"r{i}" for i in range(rows)]
            folder = tmp_path / f"{arm}-{seed}"
            runs[arm, 0.1, seed] = write_run(folder, statistics, ids, [{}] * rows, {})
    (line,) = claim.verdicts(claim.TASKS["audio" if kind == "sums" else "vision"], runs)
    assert line.startswith("both errs -63% (-6") and line.endswith("against scratch")


def test_arms_run_in_one_order_whatever_was_typed(tmp_path):
    """`scratch_longer` takes the pace of `scratch`, which has to be done before it."""
    done = []

    def submit(run, name, args, out):
        done.append(out.parent.name)
        out.mkdir(parents=True)
        write_json(out / "minutes.json", {"minutes": 1.0})
        write_json(out / "results.json", {"accuracy": 0.5, "intervals": {"accuracy": [0.4, 0.6]}})
        return SimpleNamespace(result=lambda: 1.0)

    (tmp_path / "labels/prepare").mkdir(parents=True)
    rows = {"fact": "splits", "splits": {"train": {"rows": 60}}}
    write_json(tmp_path / "labels/prepare/data.json", {"facts": [rows]})
    args = ["vision", f"--data={tmp_path}", f"--out={tmp_path}", "--seeds=1", "--arms", "scratch_longer", "scratch"]
    options = claim.command_line().parse_args(args)
    options.shares = [claim.TASKS["vision"].judged]
    claim.run_all(claim.TASKS["vision"], options, submit)
    assert done == ["scratch", "scratch_longer"]


def test_accuracy_is_made_of_classes_whatever_other_sums_there_are(monkeypatch):
    """Images of many classes have sums too, of the five likeliest."""
    classes = {"reference": np.array([0, 1]), "prediction": np.array([0, 0])}
    kinds = {"classes": classes, "sums": {"accuracy_top5": np.ones((2, 2))}}
    monkeypatch.setattr("d2v.compare.read_run", lambda run: {"statistics": (kinds, [], [])})
    assert claim.pooled("accuracy", [Path("a"), Path("b")])["sums"]["accuracy"].tolist() == [[1, 1], [0, 1]]


def test_texts_to_pretrain_on_have_none_of_the_sentences_that_are_tested(tmp_path, monkeypatch):
    monkeypatch.setattr("d2v.demo.text.documentation_paragraphs", lambda: ["Return a copy."])
    for split, texts in {"train": ["a b", "c d", "e f"], "validation": ["c d"], "test": ["e f"]}.items():
        rows = [{"tokens": text.split()} for text in texts]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / f"{split}-0.parquet")
    (tmp_path / "more.txt").write_text("One.\n\n\n\nTwo,\nthree.\n")
    folder = claim.write_texts(tmp_path, [tmp_path / "more.txt"], tmp_path / "out")
    found = datasets.Dataset.from_parquet(str(folder / "train.parquet"))["text"]
    assert list(found) == [" a b", " a b", "Return a copy.", "One.", "Two,\nthree.\n"]


@pytest.mark.slow
def test_a_claim_of_images(tmp_path, capsys):
    for seed, (split, count) in enumerate({"train": 60, "test": 12}.items()):
        rows = [photo(split, 100 * seed + i) | {"label": i % 6} for i in range(count)]
        (tmp_path / "data").mkdir(exist_ok=True)
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / f"data/{split}.parquet")
    args = ["vision", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}", "--shares=0.1,1", "--seeds=2"]
    args += ["--pretraining-seeds=1", "--minutes=0.02", "--updates=2", "--precision=fp32"]
    args += ["--arms", "scratch", "scratch_longer", "both", "--pretraining=--data.batch_size=4"]
    args += ["--fine-tuning=--data.workers=0"]
    claim.main(args)
    rows = [json.loads(line) for line in (tmp_path / "out/claim.json").read_text("utf-8").splitlines()]
    found = [(row["arm"], row["share"], row["seed"]) for row in rows]
    judged = [(arm, 0.1, seed) for arm in ("scratch", "scratch_longer", "both") for seed in (0, 1)]
    assert sorted(found) == sorted([*judged, ("scratch", 1.0, 0), ("both", 1.0, 0)])
    assert all(0 <= row["value"] <= 1 and row["minutes"] > 0 and row["metric"] == "accuracy" for row in rows)
    assert min(row["minutes"] for row in rows if row["arm"] == "both") > 0.01  # its pretraining is counted
    said = capsys.readouterr().out
    assert "both errs" in said and "against scratch_longer" in said and (tmp_path / "out/claim.png").is_file()

    before = (tmp_path / "out/claim.json").read_text("utf-8")
    claim.main(args)  # all is there
    assert (tmp_path / "out/claim.json").read_text("utf-8") == before
