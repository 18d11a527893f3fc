"""Runs in processes of their own: two ranks that go on, signals to groups and launchers. All marked slow."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import kills
from benchmarks.kills import kill
from d2v.hub import read_json
from tests.helpers import RECIPES, ROOT
from tests.recipes.common import evaluates_to_the_same, goes_on_exactly, runner
from tests.test_configs import write_like
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION
from tests.training import processes

pytestmark = pytest.mark.slow

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SPEECH = ("asr_ctc", "audio_classification", "audio_frame_classification", "speaker_verification")
IMAGES = ("image_classification", "semantic_segmentation")


def small(recipe: str, data: Path) -> list[str]:
    """Options of a run with a tiny model."""
    arch = TINY_AUDIO if recipe in SPEECH else TINY_VISION if recipe in IMAGES else TINY_TEXT
    options = [f"--arch.{key}={value}" for key, value in arch.items()]
    if recipe == "semantic_segmentation":
        options += ["--arch.num_labels=3", "--data.crop=[24,24]"]
    options += [] if recipe in SPEECH or recipe in IMAGES else ["--data.vocab_size=300"]
    return [*options, f"--data.path={data}", "--data.batch_size=4", "--run.log_every=1"]


def test_two_processes_on_a_cpu_go_on_exactly_in_all_recipes(tmp_path):
    """Runs that the clock stopped twice end with the weights and results of a straight one."""
    for recipe in RECIPES:
        write_like(recipe, None, None, tmp_path / recipe)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*TWO, __file__, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert [line for line in done.stdout.splitlines() if line.startswith("same ")] == [f"same {x}" for x in RECIPES]


def test_torchrun_makes_one_run_of_two_processes_where_there_is_no_gpu(tmp_path):
    """Without ACCELERATE_USE_CPU there were two whole runs in one folder, exit code 0."""
    write_like("text_classification", None, None, tmp_path / "data")
    options = [*small("text_classification", tmp_path / "data"), "--run.max_steps=3", f"--run.out={tmp_path / 'out'}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    command = [*TWO, str(ROOT / "recipes/text_classification.py"), *options, "--run.tracker=null"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines() if "lr" in line]
    assert steps == [1, 2, 3] and done.stdout.count("mode: train\n") == 1


@pytest.mark.parametrize(
    ("name", "target", "moment"), [("SIGTERM", "group", "training"), ("SIGUSR1", "launcher", "evaluation")]
)
def test_a_killed_run_saves_leaves_nobody_behind_and_goes_on(tmp_path, name, target, moment):
    row = kill("text_classification", name, target, moment, 0, tmp_path)
    assert row["good"] and row["in"] == moment, row


def launch(case: str, engine: str, root: Path) -> None:
    """Run a case of `processes.py` in two or three processes."""
    number = {"two": 2, "three": 3}[case]
    command = [*TWO[:-1], f"--nproc_per_node={number}", processes.__file__, case, engine, str(root)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    environment |= {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_FSDP": str(engine == "fsdp").lower()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_and_three_processes_compute_what_one_does_whatever_the_engine(tmp_path, monkeypatch, engine):
    """Losses within 1e-5, metrics of the same weights exactly, runs that go on, also on another number of processes."""
    monkeypatch.setattr(kills, "ROWS", 41)  # nothing divides it
    for recipe in processes.STILL:
        kills.write_data(recipe, tmp_path / recipe)
        processes.learn(runner(recipe), recipe, tmp_path, tmp_path / f"one_{recipe}")
    launch("two", engine, tmp_path)
    processes.move(runner("text_classification"), tmp_path, tmp_path / f"{engine}_moved", 4)
    launch("three", engine, tmp_path)
    for recipe in processes.STILL:
        one, first = (processes.entries(tmp_path / f"one_{recipe}{end}") for end in ("", "_0"))
        for number in (2, 3):
            several, again = (processes.entries(tmp_path / f"{engine}{number}_{recipe}{end}") for end in ("", "_0"))
            losses, expected = ([line["loss"] for line in lines if "lr" in line] for lines in (several, one))
            assert len(losses) == 5 and losses == pytest.approx(expected, rel=1e-5)
            metrics, same = ([line for line in lines if "lr" not in line] for lines in (again, first))
            assert [line.pop("eval_loss") for line in metrics] == pytest.approx([same[0]["eval_loss"]], rel=1e-5)
            assert metrics == [{key: value for key, value in same[0].items() if key != "eval_loss"}]
            best = tmp_path / f"{engine}{number}_{recipe}"
            results = read_json(best / "results.json")
            args = processes.options(recipe, tmp_path)
            evaluates_to_the_same(runner(recipe), best, results, args, tmp_path / f"evaluated{number}_{recipe}")
    ends = [load_file(tmp_path / f"{engine}_{name}/checkpoints/step-00000006/model.safetensors") for name in PARTS]
    stayed, moved = (torch.cat([each.flatten() for each in end.values()]) for end in ends)
    assert (stayed - moved).norm() <= 1e-5 * stayed.norm()
    dealt = {name: [rows_of(tmp_path / f"{engine}_{name}", steps) for steps in (2, 4, 6)] for name in PARTS}
    assert dealt["stayed"] == dealt["moved"] and sum(map(len, dealt["moved"])) == 6
    facts = read_json(tmp_path / f"{engine}_moved/data.json")["facts"]
    assert [(each["before"], each["processes"]) for each in facts if each["fact"] == "processes"] == [(1, 3)]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_sharded_run_that_is_killed_goes_on_exactly(tmp_path, name):
    """Between two checkpoints: by SIGKILL to all, or by SIGTERM to the launcher, after which it saves."""
    kills.write_data("text_classification", tmp_path / "data")
    options = [*small("text_classification", tmp_path / "data"), "--run.max_steps=40", "--run.eval_every=10"]
    command = [*TWO, str(ROOT / "recipes/text_classification.py"), *options, "--run.tracker=null", "--run.resume=true"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE")}
    environment |= {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_FSDP": "true", "OMP_NUM_THREADS": "1"}
    straight, out = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, out):
        run = [*command, f"--run.out={folder}"]
        with subprocess.Popen(run, env=environment, start_new_session=True) as process:
            while folder is out and process.poll() is None and len(entries(out)) < 14:
                time.sleep(0.005)
            if folder is out:
                assert process.poll() is None
                (os.killpg if name == "SIGKILL" else os.kill)(process.pid, getattr(signal, name))
        assert (process.returncode == 0) == (folder is straight)
    saved = sorted((out / "checkpoints").glob("step-*"))[-1].name
    assert saved == "step-00000010" if name == "SIGKILL" else "step-00000010" < saved < "step-00000040"
    subprocess.run([*command, f"--run.out={out}"], env=environment, check=True)
    first, second = kills.weights(straight), kills.weights(out)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert read_json(straight / "data.json")["facts"] and [x["step"] for x in entries(out) if "lr" in x][-1] == 40


def entries(out: Path) -> list[dict]:
    """Lines of a run's log that are whole."""
    log = out / "log.jsonl"
    return processes.entries(out) if log.is_file() and log.read_text().endswith("\n") else []


PARTS = ("stayed", "moved")


def rows_of(out: Path, steps: int) -> list[list[int]]:
    """The rows of each update of a part of a run, of all its processes together."""
    ranks = [json.loads(file.read_text()) for file in sorted(out.parent.glob(f"{out.name}-rows-{steps}-*.json"))]
    return [sorted(chain(*shares)) for shares in zip(*ranks, strict=True)]


if __name__ == "__main__":  # one of two ranks
    root = Path(sys.argv[1])
    for recipe in RECIPES:
        goes_on_exactly(runner(recipe), small(recipe, root / recipe), root / f"{recipe}_runs")
        if os.environ["RANK"] == "0":
            print(f"same {recipe}", flush=True)
