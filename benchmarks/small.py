"""The models that `--model small` means, made anew: `python -m benchmarks.small audio --out runs/small`.

It pretrains as `recipes/configs/pretrain_<modality>/small.yaml` says, on sources that need no download, and stores what
recipes start from, in half precision and with a card, in `d2v/small/<modality>`. A run that was stopped goes on.
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.hub import PACKAGED, WEIGHTS, read_json, write_json
from d2v.pretrained import write_weights
from d2v.training.log import read_log

SMALL = RECIPES.parent / "d2v/small"
CARD = """---
license: {licence}
tags: [data2vec, d2v]
library_name: d2v
---

# d2v's small model of {what}

What `--model small` means in d2v's recipes for {what}: {size:.1f} million weights in half precision. It was pretrained
by data2vec's method, with {auxiliary} as a second target, on {data}.
It is no released checkpoint and knows nothing else of the world: it is there so that demos show what fine-tuning is, in
minutes and without a network.

{condition}

`python -m benchmarks.small {modality} --out DIR` made it, in {minutes:.0f} minutes and {updates} updates. On held-out
rows it leaves {unexplained:.0%} of the variance of the teacher's targets unexplained; these have a rank of {rank:.0f}.
"""
OURS = "No test row, test voice or test text of any of d2v's demos was pretrained on."
ABOUT = {
    "audio": {
        "what": "speech",
        "auxiliary": "MFCCs",
        "licence": "apache-2.0",
        "data": "138 minutes of synthetic speech: 36 voices read sentences of Python's documentation and random words",
        "condition": f"{OURS}\neSpeak NG, whose voices spoke, is a program under GPL-3.0, of which nothing is in here.",
    },
    "text": {
        "what": "text",
        "auxiliary": "the masked tokens",
        "licence": "other\nlicense_name: psf-2.0",
        "data": "the docstrings, comments and language reference of Python's standard library",
        "condition": f"{OURS}\nPython's documentation is under the PSF licence, version 2: the vocabulary is its.",
    },
    "vision": {
        "what": "images",
        "auxiliary": "pixels",
        "licence": "apache-2.0",
        "data": "5,000 synthetic scenes of 64 x 64 pixels with handwritten digits, and such digits alone",
        "condition": f"{OURS}\nThe digits are those of scikit-learn, from the UCI repository under CC BY 4.0 "
        "(Alpaydin and Kaynak, 1998).",
    },
}


def store(modality: str, run: Path) -> Path:
    """What a run of pretraining left, as the package has it: the folder.

    Args:
        modality: audio, text or vision.
        run: `run.out` of the run.
    """
    folder, best = SMALL / modality, run / "best"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(best, folder, ignore=shutil.ignore_patterns(WEIGHTS, "README.md"))
    weights = {name: value.half() for name, value in load_file(best / WEIGHTS).items()}
    write_weights(weights, folder / WEIGHTS)
    write_json(folder / "config.json", read_json(best / "config.json") | {"dtype": "float16"})
    results = read_json(run / "results.json")
    seconds = max(entry.get("seconds", 0.0) for entry in read_log(run / "log.jsonl"))
    figures = {"unexplained": results["unexplained"], "rank": results["target_rank"], "updates": results["updates"]}
    size = sum(value.numel() for value in weights.values()) / 1e6
    card = CARD.format(modality=modality, size=size, minutes=seconds / 60, **figures, **ABOUT[modality])
    (folder / "README.md").write_text(card, "utf-8")
    return folder


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.small", description=__doc__.partition("\n")[0])
    parser.add_argument("modality", choices=[name.removeprefix("small/") for name in PACKAGED])
    parser.add_argument("--out", type=Path, default=Path("runs/small"), help="folder of the runs")
    return parser


def main() -> None:
    args = command_line().parse_args()
    name, out = f"pretrain_{args.modality}", args.out / args.modality
    recipe = load_recipe(name)
    config = RECIPES / f"configs/{name}/small.yaml"
    recipe.main(parse(recipe.Config, ["--config", str(config), "--run.out", str(out), "--run.resume", "true"]))
    print(f"{store(args.modality, out)}: stored")


if __name__ == "__main__":
    main()
