"""The training loop: one function for every task.

The loop knows no task. A recipe hands it a model, batches and two functions: `loss_fn(model, batch)` returns a sum and
the number of items it was taken over; `evaluate(model)` returns metrics. Sums are divided by the number of items of the
whole update, so an update does not depend on how its items were split into batches or among processes.
"""

import importlib.metadata
import importlib.util
import math
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import d2v
from d2v.config import Optim, Run, to_yaml, write_config
from d2v.errors import InputError
from d2v.pretrained import write_json
from d2v.training.log import Log
from d2v.training.optim import averaged, build_average, build_optimizer, lr_scale
from d2v.training.resume import checkpoints, load_state, replace_folder, save_state

LAUNCHED = "ACCELERATE_MIXED_PRECISION"
"""Environment variable that `accelerate launch` sets, whatever the precision."""


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the run was saved. The message says how to go on."""


def start(config: Any):
    """Begin a run: its folder with `config.yaml` and `environment.json`, the seed, Accelerate.

    Args:
        config: a recipe's configuration, with `run` and `mode`.

    Returns:
        The `accelerate.Accelerator`.

    Raises:
        InputError: the folder holds another run, or the precision is not to be had on this device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    run, out = config.run, Path(config.run.out)
    if config.mode == "train" and checkpoints(out) and not run.resume:
        raise InputError(f"{out}: holds a run; --run.resume true goes on with it, another --run.out begins a new one")
    AcceleratorState._reset_state()  # a second run in one process, as in a notebook, may have another precision
    tracker = run.tracker
    if tracker == "auto":
        tracker = "tensorboard" if importlib.util.find_spec("tensorboard") else None
    try:
        accelerator = Accelerator(
            mixed_precision={"fp32": "no"}.get(run.precision, run.precision),
            log_with=tracker if config.mode == "train" else None,
            project_dir=out,
            # LayerDrop, masks that were not drawn and a frozen encoder leave parameters without a gradient.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
    except ValueError as error:
        raise InputError(f"run.precision {run.precision}, run.tracker {run.tracker}: {error}") from error
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("run.precision fp16 needs a GPU, on a CPU it would quietly be fp32; use bf16 or fp32")
    if accelerator.device.type == "cpu" and accelerator.num_processes == 1 and LAUNCHED in os.environ:
        # accelerate launch gives a process on a CPU one thread unless told otherwise: half or less of the machine.
        torch.set_num_threads(max(torch.get_num_threads(), os.cpu_count() or 1))
    torch.set_flush_denormal(True)  # gradients too small to matter cost a CPU a tenth of its time
    set_seed(run.seed)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        print(to_yaml(config))
        write_config(config, out)
        write_json(out / "environment.json", environment())
    return accelerator


def environment() -> dict[str, Any]:
    """Versions, machine and command of this run."""
    packages = ("torch", "accelerate", "datasets", "numpy", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    machine = {"command": sys.argv, "python": platform.python_version(), "device": device, "threads": threads}
    return machine | {"d2v": d2v.__version__} | versions


def fit(
    model: nn.Module,
    batches: DataLoader,
    loss_fn: Callable[[nn.Module, dict], tuple[Tensor, Tensor]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    save: Callable[[Path], None],
    *,
    run: Run,
    optim: Optim,
    accelerator,
    metric: str,
    higher_is_better: bool,
    unit: str,
) -> dict[str, Any]:
    """Train, and leave `checkpoints/`, `best/` and `log.jsonl` in `run.out`.

    Args:
        model: to be trained, in place.
        batches: from `train_loader`; a batch is a dict of tensors and its `size` in `unit`s.
        loss_fn: returns the sum of the losses and the number of items.
        evaluate: returns metrics, the same on every process.
        save: writes the model and what belongs to it into a folder.
        run, optim: see `d2v.config`.
        accelerator: from `start`.
        metric: the key of `evaluate` that the best checkpoint is chosen by.
        higher_is_better: of the metric.
        unit: what `size` counts, for the progress bar.

    Returns:
        The loop's counters: `step`, `best`, `best_step`, `skipped`, `seconds`, ...

    Raises:
        InputError: a checkpoint cannot be read or written, or the loss is not finite again and again.
        Interrupted: a signal came; the run is saved.
    """
    out = Path(run.out)
    steps_per_epoch = len(batches) // optim.accumulation
    total = run.max_steps or run.epochs * steps_per_epoch
    eval_every = run.eval_every or steps_per_epoch
    save_every = run.save_every or eval_every
    model.gradient_checkpointing_enable(run.gradient_checkpointing)
    model.to(accelerator.device).train()
    plain = model  # without the wrapper of several processes
    average = build_average(plain, optim)
    model, optimizer = accelerator.prepare(model, build_optimizer(model, optim))

    torch.manual_seed(run.seed + accelerator.process_index)  # each process its own dropout and masks
    progress = {
        "step": 0,
        "best": None,
        "best_step": 0,
        "stale": 0,
        "skipped": 0,
        "skipped_in_a_row": 0,
        "seconds": 0.0,
    }
    if run.resume and checkpoints(out):
        progress = load_state(checkpoints(out)[-1], accelerator, model, optimizer, average)
    begun = time.monotonic() - progress["seconds"]
    accelerator.init_trackers("log")
    log = Log(out / "log.jsonl", progress["step"], total, unit, accelerator)

    def evaluate_and_keep_best() -> None:
        values = {key: float(value) for key, value in evaluate(plain).items()}
        plain.train()
        sign = 1 if higher_is_better else -1
        if progress["best"] is None or sign * values[metric] > sign * progress["best"]:
            progress.update(best=values[metric], best_step=progress["step"], stale=0)
            if accelerator.is_main_process:
                replace_folder(out / "best", save)
        else:
            progress["stale"] += 1
        log.say_evaluation(progress["step"], values, f"{progress['best']:.4f} at {progress['best_step']}")
        log.reset()

    def asked_to_stop() -> list[bool]:
        return [bool(signals), run.max_minutes is not None and time.monotonic() - begun > 60 * run.max_minutes]

    with stop_signals() as signals:
        updates = endless(batches, progress["step"], optim.accumulation)
        stop, asked = progress["step"] >= total, [0.0, 0.0]
        while not stop:
            waited = time.monotonic()
            update = next(updates)
            waited = time.monotonic() - waited
            scale = lr_scale(progress["step"], total, optim)
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * scale
            plain.freeze_encoder(progress["step"] < optim.freeze_encoder_steps)

            loss, items, size, *asked = accumulate(model, update, loss_fn, accelerator, extra=asked_to_stop)
            norm, finite = descend(model, optimizer, items, optim.clip, accelerator)
            finite = finite and math.isfinite(loss)
            if average is not None:
                average.update_parameters(plain)

            progress["step"] += 1
            progress["seconds"] = time.monotonic() - begun
            if finite:
                progress["skipped_in_a_row"] = 0
            elif accelerator.scaler is None or accelerator.scaler.get_scale() < 1:  # else fp16 looks for its scale
                progress["skipped"] += 1
                progress["skipped_in_a_row"] += 1
            log.add(loss if finite else 0.0, items if finite else 0.0, size, waited)

            now = progress["step"]
            if now % run.log_every == 0 or now == total:
                epoch, seconds, skipped = now / steps_per_epoch, progress["seconds"], progress["skipped"]
                log.say(now, lr=optim.lr * scale, norm=norm, epoch=epoch, seconds=seconds, skipped=skipped)
            if progress["skipped_in_a_row"] >= run.max_nonfinite:
                raise InputError(
                    f"loss or gradient not finite in {run.max_nonfinite} updates in a row, up to update {now}: lower "
                    "optim.lr, raise optim.warmup, or look for labels that do not fit into their input"
                )
            out_of_time_without_a_model = asked[1] and progress["best"] is None
            if now % eval_every == 0 or now == total or out_of_time_without_a_model:
                with averaged(plain, average):
                    evaluate_and_keep_best()
            stop = any(asked) or now == total or (run.patience is not None and progress["stale"] >= run.patience)
            if now % save_every == 0 or stop:
                save_state(out, accelerator, model, optimizer, average, progress, run.keep_last)
    log.close()
    if stop and asked[0] and progress["step"] < total:
        raise Interrupted(f"saved at update {progress['step']}; --run.resume true --run.out {out} goes on")
    return progress


def endless(batches: DataLoader, done: int, accumulation: int) -> Iterator[list[dict]]:
    """The batches of one update after another, epoch after epoch, beginning after `done` updates."""
    updates = len(batches) // accumulation
    while True:
        epoch, skip = divmod(done, updates)
        batches.batch_sampler.set_epoch(epoch, skip=skip * accumulation)
        iterator = iter(batches)
        while update := list(islice(iterator, accumulation)):
            yield update
            done += 1


def accumulate(model: nn.Module, update: list[dict], loss_fn: Callable, accelerator, extra: Callable) -> list[float]:
    """Gradients of the summed loss of an update's batches.

    Args:
        model: as prepared by the accelerator.
        update: this process's batches.
        loss_fn: returns a sum and a number of items.
        accelerator: from `start`.
        extra: returns numbers to be added up over processes on the way.

    Returns:
        Loss, items, size and the extra numbers, summed over batches and processes.
    """
    from accelerate.utils import send_to_device

    sums = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
    for i, batch in enumerate(update):
        batch = send_to_device(batch, accelerator.device)
        last = i + 1 == len(update)
        with nullcontext() if last else accelerator.no_sync(model):
            with accelerator.autocast():
                loss, items = loss_fn(model, batch)
            accelerator.backward(loss)
        sums += torch.stack([loss.detach().double(), items.double(), sums.new_tensor(batch["size"])])
    return accelerator.reduce(torch.cat([sums, sums.new_tensor(extra())])).tolist()


def descend(model: nn.Module, optimizer, items: float, clip: float, accelerator) -> tuple[float, bool]:
    """Divide the gradient by the number of items, clip it, and step unless it is not finite.

    Returns:
        The norm before clipping, and whether it was finite.
    """
    # Gradients are summed over items and averaged over processes, and in fp16 scaled until they are clipped: so the
    # bound is scaled too, and the division comes last.
    per_item = accelerator.num_processes / max(items, 1)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), clip / per_item if clip else math.inf))
    if finite := math.isfinite(norm):
        torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], per_item)
    if finite or accelerator.scaler is not None:  # fp16: the scaler steps over it and learns that its scale is too high
        optimizer.step()
    optimizer.zero_grad()
    return norm * per_item, finite


@contextmanager
def stop_signals():
    """Collect SIGINT and SIGTERM instead of dying of them; a second one is no longer held back."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number, frame):
        received.append(number)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, before[each])

    before = {each: signal.signal(each, receive) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@torch.no_grad()
def predict(model: nn.Module, batches: DataLoader, predict_fn: Callable, accelerator) -> list:
    """Predictions for all rows, in the order of the rows, on every process.

    Args:
        model: to be put into evaluation mode.
        batches: from `eval_loader`: each process's share of the rows; a batch has the `rows` it holds.
        predict_fn: `predict_fn(model, batch)` returns a prediction for each row of the batch.
        accelerator: from `start`.
    """
    from accelerate.utils import gather_object, send_to_device

    model.to(accelerator.device).eval()
    found = []
    for batch in batches:
        batch = send_to_device(batch, accelerator.device)
        with accelerator.autocast():
            found += zip(batch["rows"], predict_fn(model, batch), strict=True)
    return [prediction for _, prediction in sorted(gather_object(found), key=lambda pair: pair[0])]
