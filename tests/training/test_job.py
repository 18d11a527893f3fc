"""The beginning of a run: where it writes, what it refuses, what a run that goes on has to have again."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.torch_version import TorchVersion

from benchmarks.recipe import load_recipe
from d2v.config import Data, Optim, Recipe, Run
from d2v.data import cores as granted
from d2v.data.labels import LabelData
from d2v.errors import InputError
from d2v.training import engine, identity, job
from d2v.training.identity import RUN, check_config, check_data, fingerprint, plain
from d2v.training.job import start


def begin(out, mode="train", **run):
    return start(Recipe(mode=mode, model=None if mode == "train" else "some", run=Run(str(out), tracker=None, **run)))


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["evaluate", "predict"])
@pytest.mark.parametrize("left", ["checkpoints/step-00000003", "best", None])
def test_no_mode_writes_over_a_training_run(tmp_path, mode, left, capsys):
    """Prediction without --run.out overwrote the run's config.yaml, results and predictions."""
    begin(tmp_path)
    if left:
        (tmp_path / left).mkdir(parents=True)
    before = content(tmp_path)
    found = begin(tmp_path, mode)
    assert found.out == tmp_path / mode and f"results are in {tmp_path / mode}\n" in capsys.readouterr().out
    after = content(tmp_path)
    assert all(after[path] == data for path, data in before.items())
    assert {path.parent for path in after.keys() - before.keys()} == {tmp_path / mode}


def test_a_folder_of_ones_own_is_used_and_the_default_one_left_to_training(tmp_path, monkeypatch):
    assert begin(tmp_path / "mine", "evaluate").out == tmp_path / "mine"
    assert begin(tmp_path / "mine", "predict").out == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    assert begin(Run().out, "predict").config.run.out == str(Path("runs/d2v/predict"))
    assert begin(Run().out).out.name == "d2v"  # where nothing was written that training would take for a run


def test_a_best_model_is_not_trained_over(tmp_path):
    (tmp_path / "best").mkdir()
    for resume in (False, True):
        with pytest.raises(InputError, match="holds a run's best/ without its checkpoints; another --run.out"):
            begin(tmp_path, resume=resume)


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_engines_that_are_not_supported_are_named(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(InputError, match=f"accelerate is configured for {engine.OTHERS[name]}, which d2v does not"):
        begin(tmp_path)


def test_processes_that_srun_starts_are_no_run_each(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(InputError, match="srun started 4 processes, of which each would be a run of its own"):
        begin(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    begin(tmp_path)


def test_another_precision_than_before_is_said(tmp_path, capsys):
    begin(tmp_path)
    (tmp_path / "checkpoints/step-00000001").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000001" / RUN).write_text(json.dumps({"config": {}}))
    file = tmp_path / "environment.json"
    begin(tmp_path, resume=True)
    assert "precision" not in capsys.readouterr().out.partition("goes on with")[2]
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "bf16"}))
    begin(tmp_path, resume=True)
    assert "goes on with precision fp32 (was bf16)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "should"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--run.gradient_checkpointing true in its place"),
    ],
)
def test_what_of_fsdp_is_not_supported_is_named(tmp_path, monkeypatch, name, value, should):
    monkeypatch.setenv(name, value)
    begin(tmp_path)  # without FSDP nothing of it matters
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=f"configured for FSDP with {name} {value}; d2v takes {should}"):
        begin(tmp_path)


def test_compiled_models_are_refused_whatever_the_engine(tmp_path, monkeypatch):
    """In training they ended at the first padded clip."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(InputError, match="configured with dynamo_backend INDUCTOR; d2v takes none"):
        begin(tmp_path)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    begin(tmp_path)


def test_fsdp_takes_a_torch_that_sees_what_models_return(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.1+cu130"))
    begin(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"FSDP, which takes torch 2.12 or newer, not 2.11.1\+cu130"):
        begin(tmp_path)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.12.0"))
    begin(tmp_path)


def test_a_character_that_the_terminal_lacks_does_not_end_a_run(tmp_path, monkeypatch):
    with (tmp_path / "terminal").open("w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        begin(tmp_path / "größer")
        print("größer")
    assert (tmp_path / "terminal").read_text("ascii").endswith("gr\\xf6\\xdfer\n")


# ---------------------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "groups", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/", []),
        ({"cpu.max": "250000 100000"}, "0::/", [3]),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", [4]),
        ({"a/b/cpu.max": "50000 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", [1, 4]),
        ({"cpu,cpuacct/job/cpu.cfs_quota_us": "200000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, "", [2]),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, "", []),
        ({}, "0::/a", []),
    ],
)
def test_cores_of_control_groups(tmp_path, files, groups, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    table = tmp_path / "self"
    table.write_text((groups or "4:memory:/job\n3:cpu,cpuacct:/job") + "\n")
    assert sorted(granted.quotas(tmp_path, table)) == cores
    assert granted.quotas(tmp_path, tmp_path / "none") == []


def test_threads_are_those_that_were_granted(tmp_path, monkeypatch):
    """A job that was given four cores of 64 ran 64 threads."""
    monkeypatch.setattr(granted, "quotas", lambda: [3])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert granted.granted_cores() == 3
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert granted.granted_cores() == 2
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        begin(tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------------------------------------------------------------
# What a run is made of
# ---------------------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    data = tmp_path / "data"
    (data / "train/dog").mkdir(parents=True)
    for name, text in (("train/dog/1.wav", "ab"), ("train/dog/2.wav", "abc"), ("meta.csv", "x")):
        (data / name).write_text(text)
    first = fingerprint(str(data), data / "run")
    assert (first["files"], first["bytes"]) == (3, 6)
    # What is hidden, a run's own folder and other runs do not count; nor do times and contents.
    for name in (".cache/a", "train/._1.wav", "run/log.jsonl", "other/config.yaml", "other/environment.json"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text("new")
    (data / "meta.csv").write_text("y")
    assert fingerprint(str(data), data / "run") == first
    moved = data.rename(tmp_path / "moved")
    assert fingerprint(str(moved), moved / "run") == first
    (moved / "train/dog/2.wav").rename(moved / "train/2.wav")
    assert fingerprint(str(moved), moved / "run")["sha256"] != first["sha256"]
    file = fingerprint(str(moved / "meta.csv"), tmp_path)
    assert (file["files"], file["bytes"]) == (1, 1)
    assert fingerprint("owner/set-of-the-hub", tmp_path) is None and fingerprint(None, tmp_path) is None


def written(tmp_path, config, **more):
    folder = tmp_path / "out/checkpoints/step-00000002"
    folder.mkdir(parents=True)
    (folder / RUN).write_text(json.dumps({"config": plain(config)} | more))
    return folder


@pytest.mark.parametrize("other", [{"a": 5.0}, {"a": 2.0, "b": 9.0}, "balanced"])
def test_class_weights_are_one_option(other, tmp_path):
    config = Recipe(data=LabelData(class_weights={"a": 2.0} if other != {"a": 5.0} else "equal"))
    folder = written(tmp_path, config)
    assert check_config(config, folder) == []
    with pytest.raises(InputError, match=r"here is data.class_weights .* \(was "):
        check_config(replace(config, data=LabelData(class_weights=other)), folder)


def test_options_are_compared_by_what_they_do(tmp_path):
    config = Recipe(arch={"hidden_size": 8}, data=Data(path="a"))
    folder = written(tmp_path, config, data={"files": 1, "bytes": 2, "sha256": "a"})
    assert check_config(config, folder) == []
    free = replace(config, run=Run(epochs=3, patience=2), data=Data(path="b", workers=2))
    assert check_config(free, folder) == [
        "data.path b (was a)",
        "data.workers 2 (was 0)",
        "run.epochs 3 (was 10)",
        "run.patience 2 (was None)",
    ]
    for other, line in (
        (replace(config, arch={"hidden_size": 9}), "arch.hidden_size 9 (was 8)"),
        (replace(config, arch={}), "arch.hidden_size None (was 8)"),
        (replace(config, data=Data(path="a", validation_split="dev")), "data.validation_split dev (was validation)"),
        (replace(config, freeze="encoder"), "freeze encoder (was nothing)"),
        (replace(config, model="m"), "model m (was None)"),
    ):
        with pytest.raises(InputError) as caught:
            check_config(other, folder)
        assert f"here is {line}; give the old values" in str(caught.value)
    for optim, line in (
        (Optim(weight_decay=0.01), "optim.weight_decay 0.01 (was 0.0)"),  # with other groups of parameters
        (Optim(layer_decay=0.75), "optim.layer_decay 0.75 (was 1.0)"),
    ):
        with pytest.raises(InputError) as caught:
            check_config(replace(config, optim=optim), folder)
        assert f"here is {line}; give the old values" in str(caught.value)
    # What validation is measured with chooses the best, and so does how.
    pictures = load_recipe("semantic_segmentation").Config()
    stored = written(tmp_path / "pictures", pictures)
    for other in (replace(pictures, flip=True), replace(pictures, scales=(0.5, 1.0))):
        with pytest.raises(InputError, match="here is (flip|scales)"):
            check_config(other, stored)
    # The metric that chooses can be mended while nothing was chosen.
    by_cer = replace(config, run=Run(metric="cer"))
    assert check_config(by_cer, folder) == ["run.metric cer (was None)"]
    pictures = load_recipe("image_classification").Config()
    classes = written(tmp_path / "classes", pictures)
    macro = replace(pictures, data=replace(pictures.data, metrics=["macro_f1"]))
    assert check_config(macro, classes) == ["data.metrics ['macro_f1'] (was [])"]
    (tmp_path / "out/best").mkdir()
    with pytest.raises(InputError, match="run.metric cer"):
        check_config(by_cer, folder)
    # An option that another version of d2v lacked is not held against the run.
    text = json.loads((folder / RUN).read_text())
    del text["config"]["run"]["seed"]
    (folder / RUN).write_text(json.dumps(text))
    assert check_config(replace(config, run=Run(seed=7)), folder) == []


def test_a_run_of_another_recipe_does_not_go_on(tmp_path):
    config = load_recipe("causal_lm").Config()
    folder = written(tmp_path, config, recipe="causal_lm")
    assert check_config(config, folder) == []
    with pytest.raises(InputError, match="is of a run of causal_lm; masked_lm needs another --run.out"):
        check_config(load_recipe("masked_lm").Config(), folder)


def test_a_run_writes_nothing_beside_the_data(tmp_path):
    """The folder became one of a run, which is no data, and could not be read again."""
    (tmp_path / "rows.csv").write_text("text,label\na,x\n")
    with pytest.raises(InputError, match=r"run.out .*: is where the data are \(data.path\)"):
        start(Recipe(data=Data(path=str(tmp_path)), run=Run(str(tmp_path / "."), tracker=None)))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_data_that_grew_are_refused(tmp_path):
    """A resumed run trained a new tokenizer of them, and its best/ did not fit."""
    before = {"files": 3, "bytes": 6, "sha256": "a"}
    config = Recipe(data=Data(path="sounds"))
    folder = written(tmp_path, config, data=before)
    check_data(config, folder, before)
    with pytest.raises(InputError, match="sounds: .* began with 3 files of 6 bytes, here it is 4 files of 8 bytes; a"):
        check_data(config, folder, {"files": 4, "bytes": 8, "sha256": "b"})
    with pytest.raises(InputError, match="here it is 3 files of 6 bytes; their names or sizes differ; a run"):
        check_data(config, folder, {"files": 3, "bytes": 6, "sha256": "b"})
    with pytest.raises(InputError, match="here it is not there"):
        check_data(config, folder, None)
    assert check_config(replace(config, data=Data(path="moved")), folder) == ["data.path moved (was sounds)"]


def test_another_data_set_of_the_hub_is_refused(tmp_path):
    """There are no files by which it would be known that it is the same one elsewhere."""
    config = Recipe(data=Data(path="owner/reviews@v1"))
    folder = written(tmp_path, config, data=None)
    with pytest.raises(InputError, match="data.path owner/reviews@v2"):
        check_config(replace(config, data=Data(path="owner/reviews@v2")), folder)


def test_losses_are_divided_by_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    job = start(Recipe(run=Run(str(tmp_path), tracker=None, precision="fp32")))
    weight = torch.ones(1, requires_grad=True)
    job.accelerator.backward(3 * weight.sum())
    assert weight.grad == 3


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"rows": 9}, r"rows to train on are no longer those of the run \(8, now 9\)"),
        ({"kept": "c"}, "vocabulary or processor are no longer those of the run; a run goes on"),
        ({"model": "d"}, "classes or model are no longer those of the run; a run goes on"),
    ],
)
def test_a_run_keeps_its_rows_vocabulary_and_classes(tmp_path, change, what):
    made_of = {"config": {}, "rows": 8, "kept": "a", "model": "b"}
    (tmp_path / RUN).write_text(json.dumps(made_of))
    identity.check_made_of(made_of, tmp_path)
    with pytest.raises(InputError, match=what):
        identity.check_made_of(made_of | change, tmp_path)


def test_processes_without_a_common_disk_are_found_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda found: [("node1", True), *found])
    monkeypatch.setattr(job.time, "monotonic", iter(range(0, 1000, 20)).__next__)
    monkeypatch.setattr(job.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(job.platform, "node", lambda: "node2")
    here = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), out=tmp_path)
    (tmp_path / "environment.json").write_text('{"run": "abc"}')
    job.check_disk(here, "abc")
    with pytest.raises(InputError, match="node2 does not see what the first process writes there; use a shared disk"):
        job.check_disk(here, "abd")
