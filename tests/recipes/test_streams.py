"""Every recipe trains two updates from a stream, or says why it cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recipe import RECIPES
from d2v.errors import InputError
from tests.helpers import SCRIPTS
from tests.recipes.common import goes_on_exactly, runner, same_weights
from tests.test_configs import SOURCES
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION

REFUSED = {
    "question_answering": "answers are looked for in all contexts",
    "multiple_choice": "the choices of all rows are read",
    "speaker_verification": "the speakers of train are the classes",
    "audio_frame_classification": "recordings are cut into windows",
}
ARCH = {"audio": TINY_AUDIO, "asr": TINY_AUDIO, "speaker": TINY_AUDIO, "image": TINY_VISION, "vision": TINY_VISION}
ARCH |= {"semantic": TINY_VISION | {"image_size": 24}}
OPTIONS = {"text": ["--data.max_length=16", "--data.vocab_size=290"], "semantic": ["--data.names=[sky,road,tree]"]}
OPTIONS["semantic"].append("--data.crop=[24,24]")


def write(recipe: str, folder: Path) -> Path:
    """Two shards of the columns that a recipe looks for, a validation and a test."""
    import datasets

    make, _ = SOURCES[recipe][None]
    for seed, split in enumerate(["train-00000-of-00002", "train-00001-of-00002", "validation", "test"]):
        table = datasets.Dataset.from_list([make(split, 10 * seed + i) for i in range(8)])
        folder.mkdir(exist_ok=True)
        table.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_updates_of_a_stream(name, tmp_path):
    kind = name.removeprefix("pretrain_").partition("_")[0]
    arch = ARCH.get(kind, TINY_TEXT)
    args = [f"--arch.{key}={json.dumps(value)}" for key, value in arch.items()]
    args += OPTIONS.get(kind, OPTIONS["text"] if arch is TINY_TEXT else [])
    args += ["--teacher.layers=2"] if name.startswith("pretrain_") else []
    args += [f"--data.path={write(name, tmp_path / 'data')}", "--data.streaming=true", "--data.batch_size=4"]
    args += [f"--run.out={tmp_path / 'run'}", "--run.max_steps=2", "--run.precision=fp32"]
    if name in REFUSED:
        with pytest.raises(InputError, match=f"a stream cannot be of this recipe: {REFUSED[name]}"):
            runner(name)(*args)
        return
    runner(name)(*args)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text("utf-8").splitlines()]
    assert log[-1]["step"] == 2 and log[0]["loss"] > 0
    facts = json.loads((tmp_path / "run/data.json").read_text("utf-8"))["facts"]
    assert [fact["shards"] for fact in facts if fact["fact"] == "stream"] == [2]


COMMON = ["--data.streaming=true", "--data.batch_size=2", "--data.buffer_rows=8", "--run.precision=fp32"]


@pytest.mark.slow
def test_a_run_on_a_stream_goes_on_exactly(tmp_path):
    args = [f"--arch.{key}={json.dumps(value)}" for key, value in TINY_TEXT.items()] + OPTIONS["text"] + COMMON
    args.append(f"--data.path={write('text_classification', tmp_path / 'data')}")
    goes_on_exactly(runner("text_classification"), args, tmp_path)


@pytest.mark.slow
def test_two_processes_on_a_stream_go_on_exactly(tmp_path):
    """Each reads one of the two shards, and both end with the weights of the run that was not stopped."""
    data = write("image_classification", tmp_path / "data")
    args = [f"--arch.{key}={json.dumps(value)}" for key, value in TINY_VISION.items()] + COMMON
    args += [f"--data.path={data}", "--run.tracker=null", "--run.max_steps=5", "--run.save_every=1"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

    def run(out, *more):
        command = [*torchrun, str(RECIPES / "image_classification.py"), *args, f"--run.out={tmp_path / out}", *more]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    assert (done := run("straight")).returncode == 0, done.stderr
    assert (stopped := run("stopped", "--run.max_minutes=1e-6")).returncode == 0, stopped.stderr
    assert (done := run("stopped", "--run.resume=true")).returncode == 0, done.stderr
    assert "a stream of 2 shards" in done.stdout
    last = "checkpoints/step-00000005/model.safetensors"
    same_weights(tmp_path / "straight" / last, tmp_path / "stopped" / last)
