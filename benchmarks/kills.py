"""Runs that are killed at random moments and go on: what each left behind, and whether it ended as a straight run does.

    python -m benchmarks.kills --runs 60

A tiny model of each modality is trained with two data workers. A signal comes in training, in evaluation or while a
checkpoint is written; to the process, to its whole group, or to `accelerate launch` alone. A case is good if the
process exits with 130 (the launcher with its own code), nothing of it is alive ten seconds later, and
`--run.resume true` ends with the weights of the straight run, bit for bit.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.recipe import RECIPES

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
AUDIO = {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 1}
ARCH = {
    "audio_classification": TINY | AUDIO | {"mask_time_length": 2},
    "text_classification": TINY,
    "image_classification": TINY | {"image_size": 16, "patch_size": 8},
}
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")
TARGETS = ("process", "group", "launcher")
MOMENTS = ("training", "evaluation", "saving")
STEPS, EVERY, ROWS = 60, 6, 48


def write_data(recipe: str, folder: Path) -> None:
    """Three splits of two classes that a tiny model can tell apart, or not."""
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        noise = np.random.default_rng(len(split))
        rows = [{"label": "ab"[i % 2]} for i in range(ROWS)]
        for i, row in enumerate(rows):
            if recipe == "audio_classification":
                sound = np.sin(np.arange(2400) * (0.1 + 0.2 * (i % 2))) + 0.1 * noise.normal(size=2400)
                row["audio"] = {"array": sound.astype(np.float32), "path": f"{i}.wav", "sampling_rate": 16_000}
            elif recipe == "image_classification":
                row["image"] = (noise.integers(0, 128, (16, 16, 3)) + 127 * (i % 2)).astype(np.uint8)
            else:
                row["text"] = " ".join(noise.choice(list("abcdef"[3 * (i % 2) :]), 12))
        table = datasets.Dataset.from_list(rows)
        if recipe == "audio_classification":
            import io

            import soundfile

            files = []
            for row in rows:
                soundfile.write(file := io.BytesIO(), row["audio"]["array"], 16_000, format="WAV")
                files.append({"bytes": file.getvalue(), "path": row["audio"]["path"]})
            table = datasets.Dataset.from_dict({"audio": files, "label": [row["label"] for row in rows]})
        elif recipe == "image_classification":
            table = table.cast_column("image", datasets.Image())
        table.to_parquet(folder / f"{split}.parquet")


def command(recipe: str, data: Path, out: Path, *, launched: bool = False, workers: int = 2) -> list[str]:
    """A run, with or without `accelerate launch`."""
    arch = [f"--arch.{key}={value}" for key, value in ARCH[recipe].items()]
    options = [f"--data.path={data}", f"--data.workers={workers}", "--data.batch_size=4", f"--run.out={out}"]
    options += [f"--run.max_steps={STEPS}", f"--run.eval_every={EVERY}", "--run.log_every=1", "--run.tracker=null"]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"] if launched else [sys.executable]
    return [*start, str(RECIPES / f"{recipe}.py"), *arch, *options, "--run.resume=true", "--run.seed=1"]


def alive(word: str) -> list[int]:
    """The processes, of any session, whose command line has a word; a process that ended and waits has none."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and word in (folder / "cmdline").read_bytes().decode(errors="replace"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def wait_for(moment: str, out: Path, process: subprocess.Popen, chance: random.Random) -> str:
    """Wait for such a moment of a run; returns the moment, or "ended" where the run was quicker."""
    skip, seen = chance.randrange(1, STEPS // EVERY - 1), set()
    while process.poll() is None:
        saved = sorted(out.glob("checkpoints/step-*"))
        seen |= {path.name for path in saved}
        newest = saved[-1] if saved else None
        if len(seen) > skip and (
            (moment == "saving" and (out / "checkpoints/unfinished").exists())
            or (moment == "evaluation" and newest and not (newest / "evaluated.json").exists())
            or (moment == "training" and newest and (newest / "evaluated.json").exists())
        ):
            time.sleep(chance.uniform(0, 0.02) if moment == "training" else 0)
            return moment
        time.sleep(0.0005)
    return "ended"


def weights(out: Path) -> dict[str, torch.Tensor]:
    """Those of a finished run's best and last model, by name."""
    last = sorted(out.glob("checkpoints/step-*"))[-1]
    files = {"last": last / "model.safetensors", "best": out / "best/model.safetensors"}
    return {f"{name} {key}": value for name, file in files.items() for key, value in load_file(file).items()}


def kill(recipe: str, name: str, target: str, moment: str, seed: int, root: Path) -> dict:
    """One run that is killed once and goes on; returns what came of it."""
    data, straight, out = root / recipe / "data", root / recipe / "straight", root / recipe / f"killed-{seed}"
    one_thread = os.environ | {"SLURM_CPUS_PER_TASK": "1", "OMP_NUM_THREADS": "1"}  # launched or not: the same bits
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": one_thread}
    if not data.exists():
        write_data(recipe, data)
    if not straight.exists():
        subprocess.run(command(recipe, data, straight), check=True, **quiet)
    started = command(recipe, data, out, launched=target == "launcher")
    with (root / recipe / f"killed-{seed}.log").open("w+", encoding="utf-8") as log:  # which orphans may write to
        process = subprocess.Popen(started, start_new_session=True, **quiet | {"stderr": log})
        hit = wait_for(moment, out, process, random.Random(seed))
        if hit != "ended":
            (os.killpg if target == "group" else os.kill)(process.pid, getattr(signal, name))
        begun = time.monotonic()
        process.wait(timeout=120)
        ended = time.monotonic()
        left = alive(str(out))
        while left and time.monotonic() - ended < 10:
            time.sleep(0.1)
            left = alive(str(out))
        seconds = time.monotonic() - begun
        log.seek(0)
        error = log.read()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    saved = [path.name.removeprefix("step-").lstrip("0") for path in sorted(out.glob("checkpoints/step-*"))]
    again = subprocess.run(command(recipe, data, out), **quiet)
    equal = False
    if again.returncode == 0:
        first, second = weights(straight), weights(out)
        equal = first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    good = (process.returncode == 130 or target == "launcher" or hit == "ended") and not left and equal
    row = {"recipe": recipe, "signal": name, "to": target, "in": hit, "exit": process.returncode}
    row |= {"seconds": round(seconds, 1), "left": len(left), "saved": saved[-1] if saved else "-", "equal": equal}
    return row | {"good": good} | ({} if good else {"error": (error + again.stderr)[-2000:]})


def command_line() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="number of runs")
    parser.add_argument("--seed", type=int, default=0, help="of cases and moments")
    parser.add_argument("--out", type=Path, default=None, help="JSON file for the table")
    return parser


def main() -> None:
    """Draw the cases, run them, print the table."""
    options = command_line().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # runs begun by a shell in the background ignore it
    cases = list(product(ARCH, SIGNALS, TARGETS, MOMENTS))
    random.Random(options.seed).shuffle(cases)
    rows = []
    with tempfile.TemporaryDirectory(prefix="d2v-kills-") as root:
        for i in range(options.runs):
            rows.append(kill(*cases[i % len(cases)], seed=options.seed + i, root=Path(root)))
            if i == 0:
                print("| " + " | ".join(key for key in rows[0] if key != "error") + " |")
                print("|---" * (len(rows[0]) - ("error" in rows[0])) + "|")
            print("| " + " | ".join(str(value) for key, value in rows[-1].items() if key != "error") + " |", flush=True)
            if "error" in rows[-1]:
                print(rows[-1]["error"], file=sys.stderr)
    hits = [row for row in rows if row["in"] != "ended"]
    print(f"{sum(row['good'] for row in rows)} of {len(rows)} good, {len(hits)} of them killed in time")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
