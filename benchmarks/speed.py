"""Speed and memory of the twelve heads beside transformers, on equal terms and in one process.

    python -m benchmarks.speed all
    python -m benchmarks.speed asr_ctc masked_lm --precision fp32 --batches grouped --rounds 9

Three implementations with the same random weights take turns (A B C A B C ...), so that whatever else the machine does
falls on all alike; ratios are taken within a round. First they must agree on the loss of a batch without padding, else
nothing is timed. A step of training ends with the optimiser's, fused AdamW for all, since an update does.

The share of the limit is what ours reaches of the speed of matrix products alone: of the floating-point operations that
real positions take, as PyTorch counts them in our model, over those a second that products of the encoder's shapes
reach in the same round and precision.

`benchmarks.heads` has the heads, their batches and where lengths come from.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import transformers
from torch import nn

from benchmarks import heads
from benchmarks.heads import HEADS, Batch, batches_of, loss_of, unlabelled
from benchmarks.operations import operations
from d2v.training.engine import keeping_casts
from d2v.training.machine import ask_for_huge_pages, environment
from d2v.training.report import peak_memory_mb

IMPLEMENTATIONS = EAGER, SDPA, OURS = "transformers-eager", "transformers-sdpa", "ours"
PRODUCTS = "products"  # what a round measures besides
EVALUATED = 4
"""How often inference takes a round's batches: ours casts weights once for an evaluation, transformers each time."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = {
    "task": "{:<27}",
    "batches": "{:<8}",
    "dropout": "{:<8}",
    "precision": "{:<10}",
    "mode": "{:<10}",
    "implementation": "{:<19}",
    "s/step": "{:>8}",
    "items/s": "{:>8}",
    "x sdpa": "{:>7}",
    "of limit": "{:>9}",
    "MB": "{:>6}",
}
Model = nn.Module
Step = Callable[[Model, Batch], None]


def autocast(precision: str) -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16")


def train_step(task: str, precision: str, optimizer: torch.optim.Optimizer | None) -> Step:
    """A step of training; without an optimiser the gradients are thrown away."""

    def step(model: Model, batch: Batch) -> None:
        with autocast(precision):
            loss = loss_of(task, model, batch)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad()

    return step


def inference_step(precision: str) -> Step:
    """A forward pass without labels."""

    def step(model: Model, batch: Batch) -> None:
        with torch.no_grad(), autocast(precision):
            model(**unlabelled(batch))

    return step


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def products(positions: int, config: Any, precision: str) -> Callable[[], float]:
    """What measures the speed, in operations a second, of a block's six matrix products for so many positions."""
    width, hidden = config.hidden_size, config.intermediate_size
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    pairs = []
    for size_in, size_out, times in ((width, width, 4), (width, hidden, 1), (hidden, width, 1)):
        shapes = ((positions, size_in), (size_in, size_out), (positions, size_out))
        pairs += [[torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes]] * times
    total = sum(2 * x.shape[0] * weight.numel() for x, weight, _ in pairs)

    def run() -> None:
        for x, weight, out in pairs:
            torch.mm(x, weight, out=out)

    return lambda: total / seconds(run)


def work(step: Step, model: Model, batches: list[Batch]) -> tuple[int, int]:
    """Floating-point operations that steps take, and the mean number of positions in the encoder; of our model."""
    positions: list[int] = []
    first = model.base_model.encoder.layers[0]
    handle = first.register_forward_pre_hook(lambda module, inputs: positions.append(len(inputs[0])))
    total = sum(operations(partial(step, model, batch)) for batch in batches)
    handle.remove()
    return total, round(sum(positions) / len(positions))


def rounds(
    mode: str, task: str, models: dict[str, Model], batches: list[Batch], precision: str, count: int
) -> Iterator:
    """Each round's seconds by implementation, and `PRODUCTS`; a first one, which allocates memory, does not count.

    First of all come the floating-point operations of a round.
    """
    step = {}
    for name, model in models.items():
        model.train(mode == "train")
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0, fused=True) if mode == "train" else None  # 0: the weights stay
        step[name] = train_step(task, precision, optimizer) if mode == "train" else inference_step(precision)
    counting = train_step(task, "fp32", None) if mode == "train" else inference_step("fp32")
    operations_of_round, positions = work(counting, models[OURS], batches)
    yield operations_of_round
    measure = products(positions, models[OURS].config, precision)
    turns = EVALUATED if mode == "inference" else 1
    for i in range(1 + count):
        found = {PRODUCTS: measure()}
        for name, model in models.items():
            keeps = mode == "inference" and name == OURS
            with keeping_casts(model, torch.device(DEVICE)) if keeps else nullcontext():
                total = sum(seconds(partial(step[name], model, batch)) for batch in batches * turns)
            found[name] = total / turns
        if i:
            yield found


def check_losses(task: str, models: dict[str, Model], batch: Batch) -> None:
    """Exit unless all give one loss in fp32; of a batch without padding, which changes transformers' (its #25621)."""
    with torch.no_grad():  # transformers keeps tensors from one call to the next, which inference mode would spoil
        losses = {name: loss_of(task, model.eval(), batch).item() for name, model in models.items()}
    if not all(abs(loss / losses[SDPA] - 1) <= 1e-4 for loss in losses.values()):  # so written, NaN is caught too
        values = ", ".join(f"{name} {loss:.6g}" for name, loss in losses.items())
        sys.exit(f"{task}: the losses differ by more than 1e-4 relative ({values}): nothing is timed")


def measure(task: str, args: argparse.Namespace, memory: dict[tuple[str, str], float]) -> Iterator[dict[str, Any]]:
    """The rows of the table for a head."""
    for dropout in args.dropout:
        models = dict(zip(IMPLEMENTATIONS, build(task, args, dropout == "on"), strict=True))
        check_losses(task, models, on_device(heads.single(task, args.size)))
        modes = ("train",) if dropout == "on" and "off" in args.dropout else ("train", "inference")  # it has no dropout
        for how in args.batches:
            batches = choose_batches(task, args, how)
            items = sum(len(next(iter(batch.values()))) for batch in batches)
            for precision, mode in [(precision, mode) for precision in args.precision for mode in modes]:
                total, *found = rounds(mode, task, models, batches, precision, args.rounds)
                for name in IMPLEMENTATIONS:
                    row = {"task": task, "batches": how, "dropout": dropout, "precision": precision, "mode": mode}
                    row |= {"implementation": name, "s/step": median(each[name] for each in found) / len(batches)}
                    row["items/s"] = items / len(batches) / row["s/step"]
                    row["x sdpa"] = median(each[SDPA] / each[name] for each in found)
                    if name == OURS:
                        row["of limit"] = median(total / each[name] / each[PRODUCTS] for each in found)
                        row["GFLOP/s of products"] = median(each[PRODUCTS] for each in found) / 1e9
                    if mode == "train" and (name, precision) in memory:
                        row["MB"] = memory[name, precision]
                    yield row


def build(task: str, args: argparse.Namespace, dropout: bool) -> list[Model]:
    """The models in the order of `IMPLEMENTATIONS`, on the device."""
    models = heads.models(task, args.size, dropout, args.freeze_feature_encoder)
    for model in models if args.gradient_checkpointing else ():
        model.gradient_checkpointing_enable()
    return [model.to(DEVICE) for model in models]


def on_device(batch: Batch) -> Batch:
    return {key: value.to(DEVICE) for key, value in batch.items()}


def choose_batches(task: str, args: argparse.Namespace, how: str) -> list[Batch]:
    lengths = args.lengths if heads.kind_of(task) == "Audio" else ()
    return [on_device(batch) for batch in batches_of(task, args.size, how, args.rows, lengths)]


def step_memory(task: str, implementation: str, args: argparse.Namespace) -> float:
    """MB of a training step above the loaded model: the peak of the second, gradients counted and no optimiser."""
    model = build(task, args, args.dropout[0] == "on")[IMPLEMENTATIONS.index(implementation)]
    step, batch = train_step(task, args.precision[0], None), choose_batches(task, args, args.batches[0])[-1]
    step(model.train(), batch)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, batch)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss / 2**20
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux counts its peak anew; elsewhere the first step's stays
    step(model, batch)
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10 - before
    return (peak_memory_mb() or float("nan")) - before


def step_memory_of(task: str, implementation: str, precision: str, argv: list[str]) -> float:
    """`step_memory` in a fresh process."""
    options = ["--only", task, "--memory-of", implementation, "--precision", precision]
    command = [sys.executable, "-m", "benchmarks.speed", *argv, *options]
    result = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.split()[-1])


def line(row: dict[str, Any]) -> str:
    """A row of the table as text."""
    cells = [row.get(key, "-") for key in COLUMNS]
    texts = [
        cell if isinstance(cell, str) else f"{cell:.0f}" if key == "MB" else f"{cell:.3g}"
        for key, cell in zip(COLUMNS, cells, strict=True)
    ]
    return " ".join(form.format(text) for form, text in zip(COLUMNS.values(), texts, strict=True))


def plot(found: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw how many times as fast as transformers with SDPA ours is: a bar for each head, precision and batches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ours = [row for row in found if row["implementation"] == OURS]
    tasks = list(dict.fromkeys(row["task"] for row in ours))
    modes = list(dict.fromkeys(row["mode"] for row in ours))
    kinds = list(dict.fromkeys((row["precision"], row["batches"], row["dropout"]) for row in ours))
    size = (4.5 * len(modes), 1.5 + 0.12 * len(tasks) * (1 + len(kinds)))
    figure, axes = pyplot.subplots(1, len(modes), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, mode in zip(axes[0], modes, strict=True):
        for i, kind in enumerate(kinds):
            rows = {
                row["task"]: row
                for row in ours
                if (row["precision"], row["batches"], row["dropout"]) == kind and row["mode"] == mode
            }
            places = [tasks.index(task) + (i + 0.5) / (1 + len(kinds)) - 0.5 for task in rows]
            label = f"{kind[0]}, {kind[1]} batches, dropout {kind[2]}"
            axis.barh(places, [row["x sdpa"] for row in rows.values()], 0.9 / (1 + len(kinds)), label=label)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=f"{mode}: times as fast", yticks=range(len(tasks)), yticklabels=tasks)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    figure.suptitle(title, fontsize="small")
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def command_line() -> argparse.ArgumentParser:
    """The options."""

    def comma_separated_seconds(text: str) -> list[float]:
        return [float(length) for length in text.split(",")]

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__, formatter_class=form)
    parser.add_argument("tasks", nargs="*", choices=[*HEADS, "all"], help="heads, by their recipes' names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="of autocast"
    )
    parser.add_argument(
        "--batches",
        nargs="+",
        choices=heads.BATCHES,
        default=["grouped", "equal"],
        help="lengths in a batch: as the data have them, of like lengths, all the same",
    )
    parser.add_argument(
        "--dropout",
        nargs="+",
        choices=("off", "on"),
        default=["off", "on"],
        help="on: as recipes fine-tune; LayerDrop and masks are always off",
    )
    parser.add_argument("--rows", type=int, help="items of a batch, instead of each head's")
    parser.add_argument(
        "--lengths", type=comma_separated_seconds, default=[], help="of clips, in place of real ones: 10,7,5,3"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--size", choices=("base", "tiny"), default="base")
    parser.add_argument("--freeze-feature-encoder", action="store_true", help="as fine-tuning recipes do")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="in all")
    parser.add_argument("--no-memory", action="store_true", help="skip the processes that measure memory")
    parser.add_argument("--out", default="speed", help="what speed.json and speed.png are called")
    parser.add_argument("--only", choices=HEADS, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    parser = command_line()
    args = parser.parse_args(argv)
    if min(args.rounds, args.threads, args.rows or 1) < 1 or not all(0.1 <= length <= 60 for length in args.lengths):
        parser.error("--rounds, --rows and --threads must be 1 or more, --lengths 0.1 to 60 seconds each")
    args.tasks = list(HEADS) if "all" in args.tasks or not args.tasks else args.tasks
    return args


def main(argv: list[str]) -> None:
    """Measure, print the table, and write it as JSON and as a chart."""
    args = parse(argv)
    ask_for_huge_pages()  # as a run does; for all implementations
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(step_memory(args.only, args.memory_of, args))
        return
    machine = environment()
    about = (
        f"{args.size} size, {machine['device']} ({' '.join(machine['instructions']) or 'no known instructions'}), "
        f"{args.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    print(about, f"; waveform front end {'frozen' if args.freeze_feature_encoder else 'trained'}", sep="")
    print(" ".join(form.format(key) for key, form in COLUMNS.items()))
    found: list[dict[str, Any]] = []
    for task in args.tasks:
        pairs = (
            [] if args.no_memory else [(name, precision) for precision in args.precision for name in IMPLEMENTATIONS]
        )
        memory = {pair: step_memory_of(task, *pair, argv) for pair in pairs}
        for row in measure(task, args, memory):
            found.append(row)
            print(line(row), flush=True)
    sources = {task: f"{HEADS[task].lengths.source} ({HEADS[task].lengths.unit})" for task in args.tasks}
    result = {"machine": machine, "options": vars(args), "transformers": transformers.__version__, "lengths": sources}
    Path(f"{args.out}.json").write_text(json.dumps(result | {"rows": found}, indent=1) + "\n", "utf-8")
    plot(found, about, Path(f"{args.out}.png"))
    print(
        "s/step: median. x sdpa: median over the rounds of transformers-sdpa's seconds / its own; above 1 is faster.",
        "of limit: share of what matrix products alone reach. MB: of a training step above the loaded model.",
        sep="\n",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
