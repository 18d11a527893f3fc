"""Runs in processes of their own: two ranks that go on, signals to groups and launchers. All marked slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kills import kill
from tests.helpers import RECIPES, ROOT
from tests.recipes.common import goes_on_exactly, runner
from tests.test_configs import write_like
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION

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


if __name__ == "__main__":  # one of two ranks
    root = Path(sys.argv[1])
    for recipe in RECIPES:
        goes_on_exactly(runner(recipe), small(recipe, root / recipe), root / f"{recipe}_runs")
        if os.environ["RANK"] == "0":
            print(f"same {recipe}", flush=True)
