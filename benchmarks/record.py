r"""What every recipe computes, to the last bit: recorded before a change and after it, and compared.

    python -m benchmarks.record run before.json --best DIR     # in the checkout before the change
    python -m benchmarks.record run after.json --best DIR      # in the one after it
    python -m benchmarks.record compare before.json after.json

Each recipe trains 30 updates on its demo's rows, and scores and predicts with a trained model, `DIR/<recipe>/best`, in
every way that takes another path through the code. One thread, fp32, offline. A recording holds of each run the losses,
the metrics, and hashes of the weights and predictions. Kernels differ between processors: record both on one.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

RECIPES = Path(__file__).parents[1] / "recipes"
TRAIN = ["--run.max_steps=30", "--run.eval_every=30", "--run.log_every=1"]
ALWAYS = ["--run.precision=fp32", "--run.tracker=null"]
MOMENT = {"seconds", "examples_per_second", "peak_memory_mb", "freeze"}  # of a result, what depends on the moment
SCORE, PREDICT = ["--mode=evaluate"], ["--mode=predict"]

# By recipe: a name, and options. `{inputs}` is the folder that `write_inputs` fills, `{out}` where runs go.
RUNS: dict[str, dict[str, list[str]]] = {
    "asr_ctc": {
        "resumed": TRAIN,
        "evaluate": SCORE,
        "windows": [*SCORE, "--data.chunk_seconds=1.5"],
        "language model": [*SCORE, "--lm.path={inputs}/lm.arpa"],
        "normalizer": [*SCORE, "--data.normalizer=whisper"],
        "predict": [*PREDICT, "--data.path={inputs}/sounds"],
    },
    "audio_classification": {"evaluate": SCORE, "predict": [*PREDICT, "--data.path={inputs}/sounds"]},
    "audio_frame_classification": {
        "evaluate": SCORE,
        "rttm": [*SCORE, "--data.path={inputs}/sounds", "--data.rttm={inputs}/turns.rttm", "--data.label_key=speaker"],
        "predict": [*PREDICT, "--data.path={inputs}/sounds"],
    },
    "speaker_verification": {
        "evaluate": SCORE,
        "normalised": [*SCORE, "--center=true", "--s_norm=5"],
        "trials": [*PREDICT, "--data.path={inputs}/sounds", "--data.trials={inputs}/trials.txt"],
        "pairs": [*PREDICT, "--data.path={inputs}/sounds"],
    },
    "text_classification": {
        "lora": [*TRAIN, "--lora.rank=4"],
        "resumed": TRAIN,
        "evaluate": SCORE,
        "predict": [*PREDICT, "--data.path={inputs}/texts.jsonl"],
    },
    "token_classification": {"evaluate": SCORE, "predict": [*PREDICT, "--data.path={inputs}/texts.jsonl"]},
    "question_answering": {
        "evaluate": SCORE,
        "unanswerable": [*SCORE, "--data.unanswerable=true"],
        "windows": [*SCORE, "--data.max_length=96", "--data.stride=24"],
        "predict": [*PREDICT, "--data.path={inputs}/texts.jsonl"],
    },
    "multiple_choice": {
        "evaluate": SCORE,
        "predict": [
            *PREDICT,
            "--data.path={inputs}/texts.jsonl",
            "--data.prompt_column=question",
            "--data.start_column=null",
            "--data.choice_columns=[choices]",
        ],
    },
    "causal_lm": {
        "evaluate": SCORE,
        "stride": [*SCORE, "--data.stride=64"],
        "predict": [*PREDICT, "--data.path={inputs}/texts.jsonl"],
    },
    "masked_lm": {
        "evaluate": SCORE,
        "predict": [*PREDICT, "--data.path={inputs}/texts.jsonl", "--data.text_column=gap"],
    },
    "image_classification": {
        "lora": [*TRAIN, "--lora.rank=4"],
        "mixed": [*TRAIN, "--augment.mixup=0.8", "--augment.cutmix=1", "--augment.rand_augment=9", "--optim.ema=0.9"],
        "resumed": TRAIN,
        "evaluate": SCORE,
        "flip": [*SCORE, "--data.test_flip=true"],
        "predict": [*PREDICT, "--data.path={inputs}/pictures"],
    },
    "semantic_segmentation": {
        "evaluate": SCORE,
        "scales": [*SCORE, "--scales=[0.75,1.0]", "--flip=true"],
        "windows": [*SCORE, "--data.window=64", "--data.stride=40"],
        "predict": [*PREDICT, "--data.path={inputs}/pictures"],
    },
}


def write_inputs(folder: Path) -> None:
    """Sounds, texts, pictures, an RTTM file, trials and a language model, the same every time."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("sounds", "pictures"):
        (folder / name).mkdir(parents=True)
    for i in range(6):
        tones = [0.3 * np.sin(np.arange(3200) * random.uniform(0.05, 0.8)) for _ in range(4 + 2 * i)]
        samples = (32767 * (np.concatenate(tones) + random.normal(0, 0.01, 3200 * len(tones)))).astype("<i2")
        with wave.open(str(folder / f"sounds/{i}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
        noise = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize((70 + 8 * i, 90), Image.Resampling.BICUBIC).save(folder / f"pictures/{i}.png")
    turns = [
        f"SPEAKER {i} 1 {start * (4 + 2 * i) / 5:.3f} {length * (4 + 2 * i) / 5:.3f} <NA> <NA> {who} <NA> <NA>\n"
        for i in range(6)
        for start, length, who in ((0.0, 0.8, "a"), (0.5, 0.5, "b"))
    ]
    (folder / "turns.rttm").write_text("".join(turns), "utf-8")
    (folder / "trials.txt").write_text("".join(f"{i}.wav {j}.wav\n" for i in range(6) for j in range(i)), "utf-8")
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    grams = ["-99\t<s>\t0", "-1\t</s>\t0", "-9\t<unk>\t0", *(f"-1\t{word}\t0" for word in words)]
    lines = ["\\data\\", f"ngram 1={len(grams)}", "ngram 2=1", "", "\\1-grams:", *grams, "", "\\2-grams:"]
    (folder / "lm.arpa").write_text("\n".join([*lines, "-0.5\tone two", "", "\\end\\", ""]), "utf-8")
    texts = [
        "Return a list of the names in the directory given by path.",
        "The file is opened in text mode, and every line is read before it is closed again.",
        "Changed in version 3.5: the argument may be a bytes object or any object with a buffer.",
        "Raise an exception.",
    ] * 3
    rows = [
        {
            "id": str(i),
            "text": text * (1 + i % 2),
            "tokens": text.lower().split(),
            "question": "What is done first?",
            "context": text * (1 + i),
            "choices": [text, "Nothing is done.", "It is closed."][: 2 + i % 2],
            "gap": text.replace("the", "<mask>").replace("is", "<mask>").replace("an ", "<mask> "),
        }
        for i, text in enumerate(texts)
    ]
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "texts.jsonl").write_text("".join(lines), "utf-8")


def execute(recipe: str, options: list[str], out: Path) -> None:
    """Run a recipe as a process; what it prints is shown if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(RECIPES.parent)}
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *ALWAYS, *options, f"--run.out={out}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def content(out: Path) -> dict[str, Any]:
    """What is compared of a run's folder."""
    found: dict[str, Any] = {}
    results = json.loads((out / "results.json").read_text("utf-8"))
    found["results"] = {key: value for key, value in results.items() if key not in MOMENT}
    found["predictions"] = hashlib.sha256((out / "predictions.jsonl").read_bytes()).hexdigest()
    if (out / "log.jsonl").exists():
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
        found["losses"] = [line["loss"] for line in lines if "loss" in line]
        found["evaluations"] = [{k: v for k, v in line.items() if k.startswith("eval_")} for line in lines]
        found["evaluations"] = [line for line in found["evaluations"] if line]
        weights = load_file(out / "best/model.safetensors")
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(name.encode() + weights[name].tobytes())
        found["weights"] = digest.hexdigest()
    return found


def record(path: Path, best: Path, inputs: Path, recipes: list[str]) -> None:
    """Run everything and write what it left; a recording that was cut off goes on where it stopped."""
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if not inputs.exists():
        write_inputs(inputs)
    for recipe in recipes:
        for name, options in {"train": TRAIN, **RUNS[recipe]}.items():
            if f"{recipe}, {name}" in found:
                continue
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "run"
                options = [option.format(inputs=inputs) for option in options]
                if TRAIN[0] not in options:
                    options.append(f"--model={best / recipe / 'best'}")
                if name == "resumed":  # stopped after each of the first updates
                    for _ in range(2):
                        execute(recipe, [*options, "--run.resume=true", "--run.max_minutes=1e-6"], out)
                    options.append("--run.resume=true")
                execute(recipe, options, out)
                found[f"{recipe}, {name}"] = content(out)
                print(recipe, name, found[f"{recipe}, {name}"]["results"], flush=True)
            path.write_text(json.dumps(found, indent=1), "utf-8")


def compare(before: Path, after: Path) -> int:
    """Print what differs; returns how many runs do."""
    first, second = (json.loads(path.read_text("utf-8")) for path in (before, after))
    for found in (*first.values(), *second.values()):
        found["results"] = {key: value for key, value in found["results"].items() if key not in MOMENT}
    different = 0
    for name in sorted(first.keys() | second.keys()):
        a, b = first.get(name, {}), second.get(name, {})
        parts = [part for part in sorted(a.keys() | b.keys()) if a.get(part) != b.get(part)]
        different += bool(parts)
        print(f"{name}: {'equal' if not parts else 'differs in ' + ', '.join(parts)}")
        for part in parts:
            print(f"    {part}\n        {str(a.get(part))[:300]}\n        {str(b.get(part))[:300]}")
    print(f"{len(first.keys() | second.keys())} runs, {different} differ")
    return different


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run")
    run.add_argument("path", type=Path)
    run.add_argument("--best", type=Path, default=Path("runs"), help="folder with <recipe>/best of trained demos")
    run.add_argument("--inputs", type=Path, default=Path("record_inputs"), help="folder of inputs, made if not there")
    run.add_argument("--recipes", nargs="*", default=list(RUNS))
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    return parser


if __name__ == "__main__":
    args = command_line().parse_args()
    if args.command == "compare":
        sys.exit(compare(args.before, args.after) > 0)
    record(args.path, args.best.resolve(), args.inputs.resolve(), args.recipes)
