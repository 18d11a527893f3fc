"""Whether time grows with the tokens alone, and memory not at all.

    python -m benchmarks.flat --out flat

Seconds a token of the text model at base width, without a gradient, over rows of a batch and over tokens of a row; and
beside them what they would be if every operation took as long as those of the middle batch, since attention's grow with
the length. Then the memory of a process that trains a small one for many updates, on batches of all lengths, and gives
free memory back as often as the loop does.
"""

import argparse
import json
import random
import time
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import nn

from benchmarks.operations import operations
from d2v import Data2VecTextConfig, Data2VecTextForSequenceClassification
from d2v.training.machine import environment
from d2v.training.memory import TRIMMED, trim

ROWS, TOKENS = (1, 4, 16, 64), (16, 64, 128, 256, 512)
LENGTH, BATCH = 128, 4
"""Tokens of a row where rows differ, and rows of a batch where lengths do."""


def build(layers: int, width: int, vocabulary: int) -> nn.Module:
    """A model with random weights; its heads have 64 channels."""
    sizes = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    config = Data2VecTextConfig(vocab_size=vocabulary, num_hidden_layers=layers, max_position_embeddings=514, **sizes)
    return Data2VecTextForSequenceClassification(config)


def batch_of(rows: int, tokens: int, vocabulary: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, vocabulary, (rows, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def times(model: nn.Module, vocabulary: int, rounds: int) -> list[dict[str, float]]:
    """Of each batch its `rows`, `tokens`, `operations` and median `seconds`; they take turns."""
    shapes = list(dict.fromkeys([(rows, LENGTH) for rows in ROWS] + [(BATCH, tokens) for tokens in TOKENS]))
    batches = {shape: batch_of(*shape, vocabulary) for shape in shapes}
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    found = []
    with torch.inference_mode():
        for turn in range(1 + rounds):
            for shape, batch in batches.items():
                begun = time.perf_counter()
                model(**batch)
                if turn:
                    seconds[shape].append(time.perf_counter() - begun)
        for (rows, tokens), batch in batches.items():
            of = {"rows": rows, "tokens": tokens, "operations": operations(partial(model, **batch))}
            found.append(of | {"seconds": median(seconds[rows, tokens])})
    middle = next(each for each in found if (each["rows"], each["tokens"]) == (BATCH, LENGTH))
    for each in found:
        each["ms_a_token"] = 1000 * each["seconds"] / (each["rows"] * each["tokens"])
        each["of_operations"] = each["seconds"] / each["operations"] * middle["operations"] / middle["seconds"]
    return found


def memory(updates: int) -> list[tuple[int, float]]:
    """MB of this process after each twentieth of the updates of a small model."""
    model, draw = build(2, 128, 1000), random.Random(0)
    optimizer, process, measured = torch.optim.AdamW(model.parameters(), lr=1e-4), psutil.Process(), []
    for update in range(1, updates + 1):
        batch = batch_of(draw.randint(1, 16), draw.randint(4, 512), 1000)
        model(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if update % TRIMMED == 0:
            trim(torch.device("cpu"))
        if update % max(1, updates // 20) == 0:
            measured.append((update, process.memory_info().rss / 2**20))
    return measured


def plot(found: list[dict[str, float]], measured: list[tuple[int, float]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    panels = (
        ("rows", f"rows of {LENGTH} tokens", "tokens", LENGTH),
        ("tokens", f"tokens of {BATCH} rows", "rows", BATCH),
    )
    for axis, (key, label, other, fixed) in zip(axes, panels, strict=False):
        points = sorted((each[key], each) for each in found if each[other] == fixed)
        axis.plot([x for x, _ in points], [each["ms_a_token"] for _, each in points], "o-", label="measured")
        expected = [each["ms_a_token"] / each["of_operations"] for _, each in points]
        axis.plot([x for x, _ in points], expected, "--", label="by operations")
        axis.set(xscale="log", xlabel=label, ylabel="ms a token", ylim=(0, None))
        axis.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        axis.minorticks_off()
        axis.legend()
    axes[2].plot(*zip(*measured, strict=True), "o-")
    axes[2].set(xlabel="updates", ylabel="MB", ylim=(0, None))
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def command_line() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.flat", description=__doc__, formatter_class=form)
    parser.add_argument("--layers", type=int, default=12, help="blocks; all take as long")
    parser.add_argument("--width", type=int, default=768, help="of the model that is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=1000, help="of the model whose memory is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="flat", help="what flat.json and flat.png are called")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = command_line().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    machine = environment()
    instructions = " ".join(machine["instructions"]) or "no known instructions"
    about = f"{machine['device']} ({instructions}), {args.threads} threads"
    title = f"{args.layers} blocks of width {args.width}, fp32, {about}"
    found = times(build(args.layers, args.width, 50_265).eval(), 50_265, args.rounds)
    print(title, f"{'rows':>5} {'tokens':>7} {'ms a token':>11} {'of operations':>14}", sep="\n")
    for each in found:
        print(f"{each['rows']:>5} {each['tokens']:>7} {each['ms_a_token']:>11.3g} {each['of_operations']:>14.2f}")
    measured = memory(args.updates)
    print(f"{'updates':>8}  {'MB':>6}", *(f"{update:>8}  {size:>6.0f}" for update, size in measured), sep="\n")
    result = {"machine": machine, "options": vars(args), "times": found, "memory": measured}
    Path(f"{args.out}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    plot(found, measured, title, Path(f"{args.out}.png"))


if __name__ == "__main__":
    main()
