"""The released checkpoints' figures: what is run, what goes on, and with a faked hub the recipes themselves."""

import csv
import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file

from benchmarks import published
from benchmarks.recipe import load_recipe
from d2v.cli import parse
from tests.helpers import ROOT, tiny_reader, tiny_recogniser
from tests.tiny import flac, sentences, speech, tones


class Runs:
    """Stands for the recipes: notes commands and leaves a run's files."""

    def __init__(self):
        self.commands, self.fails = [], ""

    def __call__(self, words):
        _, _, *given = words
        options = dict(word[2:].split("=", 1) for word in given)
        self.commands.append(options)
        if self.fails and self.fails in str(options):
            return 130 if self.fails == "interrupt" else 2
        out, seed = Path(options["run.out"]), int(options["run.seed"])
        out.mkdir(parents=True)
        value = 0.5 + 0.1 * seed
        names = ("wer", "accuracy", "f1", "accuracy_mm", "matthews_correlation", "pearson", "spearmanr", "mean_iou")
        results = dict.fromkeys(names, value) | {"f1": value + 0.2, "seconds": 36.0, "split": "test"}
        results["intervals"] = {"wer": [0.4, 0.6]}
        (out / "results.json").write_text(json.dumps(results))
        (out / "log.jsonl").write_text('{"step": 1, "seconds": 3564.0}\n')
        (out / "environment.json").write_text('{"device": "a GPU", "git": {"commit": "0123456789"}}')
        (out / "config.yaml").write_text("model: a/b\ndata:\n  path: c/d\n  name: e\n")
        return 0


def rows(*names):
    return [row for row in published.ROWS if row.name in names]


def test_every_row_is_what_its_recipe_and_configuration_take(tmp_path):
    assert len({row.name for row in published.ROWS}) == len(published.ROWS)
    for row in published.ROWS:
        _, script, *options = published.command(row, tmp_path, 0, ["python"], ["--run.precision=bf16"])
        assert script == str(ROOT / f"recipes/{row.recipe}.py")
        config = parse(load_recipe(row.recipe).Config, options)
        assert config.model.startswith("facebook/data2vec-") and config.run.precision == "bf16" and config.run.resume


def test_a_row_at_a_time_and_nothing_twice(tmp_path):
    run, chosen = Runs(), rows("librispeech_test_clean_base", "glue_mrpc", "glue_mnli", "glue_mnli_mm")
    run.fails = "mrpc"
    lines, failed = published.measure(chosen, tmp_path, run)
    assert failed == ["glue_mrpc"] and [line["config"] for line in lines] == ["librispeech_960h", "mnli", "mnli"]
    assert len(run.commands) == 1 + 1 + 5  # both of MNLI's figures are of the same runs
    run.fails, run.commands = "", []
    lines, failed = published.measure(chosen, tmp_path, run)
    assert not failed and {options["config"].rpartition("/")[2] for options in run.commands} == {"mrpc.yaml"}
    with (tmp_path / "published.csv").open(encoding="utf-8", newline="") as file:
        assert [dict(line) for line in csv.DictReader(file)] == [{k: str(v) for k, v in row.items()} for row in lines]
    first, mrpc, *_ = lines
    assert (first["ours"], first["interval"], first["seeds"]) == ("50.00", "40.00 to 60.00", 1)
    assert first["reference"] == "2.77"
    assert (mrpc["metric"], mrpc["ours"], mrpc["interval"]) == ("accuracy+f1", "80.00", "60.00 to 100.00")
    assert (mrpc["hours"], mrpc["commit"], mrpc["hardware"], mrpc["data"]) == ("5.00", "0123456", "a GPU", "c/d e test")


def test_an_interrupt_ends_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(published, "run_command", lambda words: 130)
    with pytest.raises(SystemExit) as ended:
        published.main(["--out", str(tmp_path), "--only", "glue_rte"])
    assert ended.value.code == 130 and "the same command goes on" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="--only glu_rte: rows are librispeech"):
        published.main(["--only", "glu_rte"])


@pytest.mark.slow
def test_tiny_checkpoints_of_a_faked_hub(tmp_path, monkeypatch):
    """In the released layouts, weights as pytorch_model.bin: a recogniser is evaluated, an encoder fine-tuned."""
    hub = {
        "facebook/data2vec-audio-base-960h": tiny_recogniser(tmp_path / "recogniser"),
        "facebook/data2vec-text-base": tiny_reader(tmp_path / "reader"),
    }
    for folder in hub.values():
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    def download(repo, name, revision=None):
        if not (hub[repo] / name).is_file():
            raise EntryNotFoundError(name)
        return str(hub[repo] / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    speech(tmp_path / "speech", **{"test": [(row, "ABC") for row in sounds()]})
    (tmp_path / "cola").mkdir()
    for split, count in (("train", 16), ("validation", 12)):
        lines = [f"{text}\t{i % 2}" for i, text in enumerate(sentences(count, seed=count))]
        (tmp_path / f"cola/{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")

    def run(words):
        name = words[1].rpartition("/")[2].removesuffix(".py")
        data = {"asr_ctc": "speech", "text_classification": "cola"}[name]
        more = [f"--data.path={tmp_path / data}", "--data.name=null", "--run.tracker=null"]
        more += ["--data.test_split=test"] if name == "asr_ctc" else ["--run.max_steps=2", "--data.batch_size=4"]
        recipe = load_recipe(name)
        sys.modules[name] = recipe
        recipe.main(parse(recipe.Config, [*words[2:], *more]))
        return 0

    lines, failed = published.measure(rows("librispeech_test_clean_base", "glue_cola"), tmp_path / "out", run, seeds=2)
    assert not failed and [line["model"] for line in lines] == list(hub)
    assert all(line["interval"] and line["seeds"] == 2 and abs(float(line["ours"])) >= 0 for line in lines)


def sounds():
    return [flac(tones("abc", seed)) for seed in range(12)]
