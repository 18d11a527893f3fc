"""One of several processes that torchrun starts for `test_processes.py`: python processes.py CASE ENGINE FOLDER."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.kills import ARCH
from d2v.training import loop
from tests.recipes.common import goes_on_exactly, runner
from tests.tiny import STILL_AUDIO

STILL = {
    "audio_classification": STILL_AUDIO,
    "text_classification": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "image_classification": {"drop_path_rate": 0.0},
}
"""A recipe of each modality, and what makes nothing random in training."""

LIVELY = {
    "audio_classification": ["--arch.layerdrop=0.5", "--arch.num_hidden_layers=3", "--freeze=nothing"],
    "text_classification": ["--optim.ema=0.9", "--run.pieces=2", "--optim.freeze_encoder_steps=2"],
    "image_classification": ["--run.gradient_checkpointing=true", "--lora.rank=2"],
}
"""The same with what may stand in an engine's way."""


def options(recipe: str, data: Path, *, still: bool = True) -> list[str]:
    """Of a run with a tiny model, on rows that no number of processes divides."""
    arch = ARCH[recipe] | (STILL[recipe] if still else {})
    more = [] if still else LIVELY[recipe]
    shape = [f"--arch.{key}={value}" for key, value in arch.items()]
    if recipe == "image_classification":  # MixUp's partners are of one process
        shape += ["--augment.mixup=0", "--augment.cutmix=0"]
    return [
        *shape,
        f"--data.path={data / recipe}",
        "--data.batch_size=5",
        "--run.log_every=1",
        "--optim.lr=1e-3",
        *more,
    ]


def entries(out: Path) -> list[dict]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def learn(run: Callable, recipe: str, root: Path, out: Path) -> None:
    """Five updates, and one that changes nothing, so that an evaluation has the weights of the beginning."""
    run(*options(recipe, root), "--run.max_steps=5", "--run.eval_every=5", f"--run.out={out}")
    run(*options(recipe, root), "--run.max_steps=1", "--optim.lr=0", f"--run.out={out.with_name(out.name + '_0')}")


def move(run: Callable, root: Path, out: Path, steps: int) -> None:
    """A part of a run that goes on until so many updates are done; what each has of rows stands in a file."""
    dealt: list[list[int]] = []
    before = loop.accumulate

    def look(model, update, *rest, **options):
        dealt.append([row for batch in update if batch["counts"] for row in batch["rows"]])
        return before(model, update, *rest, **options)

    loop.accumulate = look
    constant = ["--optim.schedule=constant", "--optim.warmup=0", "--run.eval_every=2", "--run.resume=true"]
    run(*options("text_classification", root), *constant, f"--run.max_steps={steps}", f"--run.out={out}")
    loop.accumulate = before
    rank = os.environ.get("RANK", "0")
    out.with_name(f"{out.name}-rows-{steps}-{rank}.json").write_text(json.dumps(dealt))


def check_kinds(engine: str) -> None:
    """Let every update assert that the model is spread as it is meant to be."""
    before = loop.descend

    def look(model, *rest):
        kinds = {type(each) for each in model.parameters()}
        if engine == "fsdp":
            assert isinstance(model, FSDPModule) and kinds == {DTensor}, (type(model), kinds)
            assert all(isinstance(each.grad, DTensor) for each in model.parameters() if each.grad is not None)
        else:
            assert isinstance(model, DistributedDataParallel) and DTensor not in kinds, (type(model), kinds)
        return before(model, *rest)

    loop.descend = look


def main() -> None:
    """Run a case: what two processes do, or three."""
    case, engine, root = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    check_kinds(engine)
    number = os.environ["WORLD_SIZE"]
    for recipe in STILL:
        learn(runner(recipe), recipe, root, root / f"{engine}{number}_{recipe}")
        if case == "two":
            lively = options(recipe, root, still=False)
            goes_on_exactly(runner(recipe), lively, root / f"{engine}_{recipe}_runs")
    text = runner("text_classification")
    parts = {"two": [("stayed", 2), ("stayed", 4), ("stayed", 6), ("moved", 2)], "three": [("moved", 6)]}[case]
    for name, steps in parts:
        move(text, root, root / f"{engine}_{name}", steps)


if __name__ == "__main__":
    main()
