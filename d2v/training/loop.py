"""The training loop: one function for every task, and the parts that pretraining's loop shares.

The loop knows no task. A recipe hands it a model, batches and two functions: `loss_fn(model, batch)` returns a sum and
the number of items it was taken over; `evaluate(model)` returns metrics. Sums are divided by the number of items of the
whole update, so an update does not depend on how its rows were dealt to processes or cut into pieces. Batch statistics
are the exception: batch normalisation and MixUp's partners use only the rows that a process computes at once.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from d2v.config import Job, Optim, Run
from d2v.data.facts import everyones, note_decoded, say_decoded
from d2v.devices import moved
from d2v.errors import InputError, Interrupted
from d2v.lora import save_adapted
from d2v.metrics import higher_is_better
from d2v.models.base import PreTrainedModel
from d2v.models.sharded import full_tensor, is_sharded, local
from d2v.models.transformer import skip_layers
from d2v.training.engine import (
    blank,
    host_of_sums,
    keeping_casts,
    shard,
    sharding,
    share_buffers,
    to_device,
    unsharded,
    wrap,
)
from d2v.training.identity import run_identity
from d2v.training.log import open_log
from d2v.training.memory import TRIMMED, out_of_memory, trim
from d2v.training.optim import averaged, build_average, build_optimizer, lr_scale, note_warm_up
from d2v.training.report import end_preparation
from d2v.training.resume import (
    RandomState,
    checkpoints,
    go_on,
    note_evaluation,
    replace_folder,
    save_checkpoint,
    step_of,
)
from d2v.training.signals import hold_signals, received
from d2v.training.validation import (
    LossFn,
    chosen_metrics,
    measured,
    try_evaluation,
)

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass
class Progress:
    """How far a run is, and its best model.

    Attributes:
        step: updates done.
        best: best value of the metric; None before the first finite one.
        ties: the same model's other metrics that break ties.
        best_step: updates after which the best model was reached.
        stale: evaluations since then.
        evaluated: updates after which the model was last evaluated.
        skipped: updates whose loss or gradient was not finite.
        skipped_in_a_row: such updates since the last finite one.
        seconds: time spent.
    """

    step: int = 0
    best: float | None = None
    ties: list[float] = field(default_factory=list)
    best_step: int = 0
    stale: int = 0
    evaluated: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from these counters."""
        for name, value in state.items():
            setattr(self, name, value)

    def improves(self, metrics: Mapping[str, float], names: Sequence[str]) -> bool:
        """Record an evaluation; returns whether to keep its model: it is the best so far, or there is none yet.

        Args:
            metrics: of the evaluation. A value that is not finite is never the best.
            names: the metric that chooses, then those that break ties.
        """

        def rank(values: Sequence[float]) -> list[float]:
            signed = [value if higher_is_better(name) else -value for name, value in zip(names, values, strict=True)]
            return [value if math.isfinite(value) else -math.inf for value in signed]

        self.evaluated, values = self.step, [metrics[name] for name in names]
        none_yet = self.best is None
        if math.isfinite(values[0]) and (self.best is None or rank(values) > rank([self.best, *self.ties])):
            self.best, self.ties, self.best_step, self.stale = values[0], values[1:], self.step, 0
            return True
        self.stale += 1
        return none_yet

    def count(self, finite: bool, scaler: Any = None) -> None:
        """Record an update; one that is not finite does not count while fp16's scaler still looks for its scale."""
        self.step += 1
        if finite:
            self.skipped_in_a_row = 0
        elif scaler is None or scaler.get_scale() < 1:
            self.skipped += 1
            self.skipped_in_a_row += 1


def fit(
    job: Job,
    model: Model,
    batches: Any,
    loss_fn: LossFn,
    evaluate: Callable[[Model], dict[str, float]],
    *,
    keep: Sequence[Any] = (),
    metric: str,
) -> Model:
    """Train, and write `checkpoints/`, `best/` and `log.jsonl` in `run.out`.

    Args:
        job: from `d2v.training.job.start`.
        model: to be trained, in place.
        batches: from `train_loader`: iterates without end over updates, each a list of batches; has `state_dict` and
            `load_state_dict`, and, unless `run.max_steps` is given, the number of updates of an epoch as `len`.
        loss_fn: returns the sum of the losses and the number of items.
        evaluate: returns metrics, the same on every process.
        keep: the model's processor, tokenizer and the like, saved beside it.
        metric: the key of `evaluate` that chooses the best model, unless `run.metric` names another. The next key
            breaks ties.

    Returns:
        The best model, from `best/`.

    Raises:
        InputError: a checkpoint cannot be read or written, or the loss stays not finite.
        Interrupted: a signal came; the run is saved.
        Prepared: in `--mode prepare`, before anything is trained.
    """
    end_preparation(job, batches)
    run, optim, accelerator, out = job.config.run, job.config.optim, job.accelerator, job.out
    epoch, total, eval_every, save_every = schedule(job, batches)
    made_of = run_identity(job, batches, model, keep)
    model.gradient_checkpointing_enable(run.gradient_checkpointing)
    model.to(accelerator.device).train()
    kind, empty, average = type(model), blank(model), build_average(model, optim)
    if sharding():
        for each in (model, average.module) if average else (model,):
            shard(each, accelerator.device)
    optimizer = accelerator.prepare(build_optimizer(model, optim))

    torch.manual_seed(run.seed + accelerator.process_index)  # each process its own dropout and masks
    progress, own = Progress(), {"random": RandomState()}
    states = {"model": model, "optimizer": optimizer, "average": average, "batches": batches, "progress": progress}
    states["scaler"] = accelerator.scaler
    go_on(job, states, own, made_of)
    begun = saved = time.monotonic()
    spent = progress.seconds  # in earlier sessions
    log = open_log(job, progress, total)

    def evaluate_and_keep_best() -> None:
        random = own["random"].state_dict()
        with averaged(model, average):
            metrics, loss = measure(model)
            model.train()
            names = chosen_metrics(run.metric or metric, metrics, loss)
            metrics |= loss
            if progress.improves(metrics, names):
                best_model = unsharded(job, model, empty)
                if job.is_main:
                    replace_folder(out / "best", lambda folder: save_adapted(best_model, folder, keep))
        own["random"].load_state_dict(random)  # so training does not depend on this evaluation
        say_decoded(job)
        best = "none" if progress.best is None else f"{names[0]} {progress.best:.4f} at {progress.best_step}"
        log.say_evaluation(progress.step, metrics, best)
        if job.is_main:
            note_evaluation(out, progress)
        accelerator.wait_for_everyone()  # others may now read what the main process has written
        log.reset()

    def measure(model: Model) -> tuple[dict[str, float], dict[str, float]]:
        return measured(job, evaluate, model, None if metric == "loss" else loss_fn)

    def asked() -> list[bool]:
        return reasons_to_stop(run, begun, saved)

    def over() -> bool:
        return progress.step >= total or (run.patience is not None and progress.stale >= run.patience)

    with hold_signals(), interrupted_run(out), closing(log):
        if progress.step == 0:
            try_evaluation(job, measure, model, own["random"])
        elif progress.evaluated < progress.step and (progress.step % eval_every == 0 or progress.step >= total):
            evaluate_and_keep_best()  # the evaluation that was cut off
        changing = changing_gradients(model, optim, progress.step)
        prepared, updates = wrap_for(job, model, iter(batches), loss_fn, changing, over())
        while not over():
            skip_layers(model, run.seed, progress.step)
            update, waited = next_update(job, updates)
            scale = lr_scale(progress.step, total, optim)
            set_lr(optimizer, scale)
            model.freeze_encoder(progress.step < optim.freeze_encoder_steps)

            with out_of_memory(job, update, batches, f"update {progress.step + 1}"):
                loss, items, size, *asked_for = accumulate(prepared, update, loss_fn, accelerator, extra=asked)
                norm, finite = descend(prepared, optimizer, items, optim.clip, accelerator)
            finite = finite and math.isfinite(loss)
            if average is not None:
                average.update_parameters(model)

            progress.count(finite, accelerator.scaler)
            progress.seconds = spent + time.monotonic() - begun
            log.add(loss if finite else 0.0, items if finite else 0.0, size, waited)
            now = progress.step
            if now % run.log_every == 0 or now == total:
                values = {"epoch": now / epoch} if epoch else {}
                values |= {"seconds": progress.seconds, "skipped": progress.skipped}
                log.say(now, lr=optim.lr * scale, norm=norm, **values)
            advice = "optim.lr, raise optim.warmup, or look for labels that do not fit into their input"
            check_finite(run, progress, advice)
            if now % TRIMMED == 0:
                trim(accelerator.device)
            interrupt, out_of_time, _ = asked_for
            due = now % eval_every == 0 or now == total or (out_of_time and not progress.evaluated)
            if due or now % save_every == 0 or any(asked_for):  # before the evaluation, which may be long or fail
                share_buffers(model, average)
                save_checkpoint(out, now, states, accelerator, run.keep_last, own, made_of)
                saved = time.monotonic()
            if interrupt:
                raise Interrupted
            if due:
                evaluate_and_keep_best()
            if out_of_time:
                break
        stop_if_asked(job)
    return kind.from_pretrained(out / "best", verbose=False)


def schedule(job: Job, batches: Any) -> tuple[int | None, int, int, int]:
    """Updates of an epoch (None if unknown), of the run, between evaluations, and between checkpoints."""
    run, epoch = job.config.run, len(batches) if hasattr(batches, "__len__") else None
    if epoch is None and run.max_steps is None:
        raise InputError("these data have no known length; --run.max_steps says when training ends")
    total: int = run.max_steps or run.epochs * (epoch or 0)
    note_warm_up(job, total)
    eval_every = run.eval_every or epoch or total
    return epoch, total, eval_every, run.save_every or eval_every


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set each group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def reasons_to_stop(run: Run, begun: float, saved: float) -> list[bool]:
    """Whether a signal came, this session's time is up, and a checkpoint is due; on this process.

    Args:
        run: options of the run.
        begun, saved: when the session began, and when the last checkpoint was written, by `time.monotonic`.
    """
    now = time.monotonic()
    out_of_time = run.max_minutes is not None and now - begun > 60 * run.max_minutes
    return [bool(received), out_of_time, now - saved > 60 * run.save_minutes]


def stop_if_asked(job: Job) -> None:
    """Raise Interrupted, on all processes, if a signal came after the last update."""
    if any(everyones(job, bool(received))):
        raise Interrupted


def next_update(job: Job, updates: Iterator[list[dict[str, Any]]]) -> tuple[list[dict[str, Any]], float]:
    """The next update's batches, and the seconds of waiting for them; decoding problems are noted."""
    begun = time.monotonic()
    update = next(updates)
    waited = time.monotonic() - begun
    for batch in update:
        note_decoded(job, batch.pop("decoded", ()))
    return update, waited


def changing_gradients(model: nn.Module, optim: Optim, step: int) -> list[str]:
    """Reasons why the parameters that get a gradient change from update to update.

    Args:
        model: to be trained.
        optim: options of optimisation.
        step: updates done.
    """
    drops = any(getattr(each, "layerdrop", 0) for each in model.modules())
    reasons = {"LayerDrop skips other blocks each time": drops}
    reasons["the encoder is frozen at first"] = step < optim.freeze_encoder_steps
    return [reason for reason, holds in reasons.items() if holds]


def wrap_for(
    job: Job,
    model: nn.Module,
    updates: Iterator[list[dict[str, Any]]],
    loss_fn: LossFn,
    changing: list[str],
    over: bool,
) -> tuple[nn.Module, Iterator[list[dict[str, Any]]]]:
    """The model as training calls it, see `d2v.training.engine.wrap`, and its updates; `wrap` may need the first one.

    Args:
        job: from `d2v.training.job.start`.
        model: to be trained.
        updates: the remaining ones.
        loss_fn: of `fit`.
        changing: from `changing_gradients`.
        over: whether training is over.
    """
    looked_at: list[list[dict[str, Any]]] = []

    def first_loss() -> Tensor:
        looked_at.append(next_update(job, updates)[0])
        state, buffers = RandomState().state_dict(), [each.clone() for each in model.buffers()]
        with job.accelerator.autocast(), out_of_memory(job, looked_at[0], updates, "the first update"):
            loss, _ = loss_fn(model, to_device(looked_at[0][0], job.accelerator.device))
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.data.copy_(before)
        RandomState().load_state_dict(state)
        return loss

    prepared = model if over else wrap(job, model, changing, first_loss)
    return prepared, chain(looked_at, updates)


def check_finite(run: Run, progress: Progress, advice: str) -> None:
    """Raise InputError if too many consecutive updates were not finite; the advice says what to lower."""
    if progress.skipped_in_a_row >= run.max_nonfinite:
        raise InputError(
            f"loss or gradient not finite in {run.max_nonfinite} updates in a row, up to update {progress.step}: "
            f"lower {advice}"
        )


@contextmanager
def interrupted_run(out: Path) -> Iterator[None]:
    """Within, a signal ends the run with a line that says how to resume it."""
    try:
        yield
    except (Interrupted, RuntimeError) as error:
        if not (received or isinstance(error, Interrupted)):
            raise  # else another process, or a data worker, ended first
        kept = checkpoints(out)
        where = f"saved at update {step_of(kept[-1])}" if kept else "before the first update"
        raise Interrupted(f"{where}; --run.resume true --run.out {out} goes on") from error


def accumulate(
    model: nn.Module, update: list[dict], loss_fn: LossFn, accelerator, extra: Callable[[], Sequence[float]] = tuple
) -> list[float]:
    """Gradients of the summed loss of an update's batches.

    Args:
        model: as prepared by the accelerator.
        update: this process's batches, as many as on every other process.
        loss_fn: returns a sum and a number of items.
        accelerator: from `d2v.training.job.start`.
        extra: returns further numbers to be added up over processes.

    Returns:
        Loss, items, size and the extra numbers, summed over batches and processes.
    """
    if is_sharded(model):
        share_buffers(model)  # DDP does this for other models
    device = host_of_sums(accelerator.device)
    on_host, on_device = (torch.zeros(3, dtype=torch.float64, device=each) for each in ("cpu", device))
    with keeping_casts(model, accelerator.device):
        for i, batch in enumerate(update):
            batch = to_device(batch, accelerator.device)
            last = i + 1 == len(update)
            with nullcontext() if last else accelerator.no_sync(model):
                with accelerator.autocast():
                    loss, items = loss_fn(model, batch)
                if not batch.get("counts", True):  # a row that another process has too, see `Updates`
                    loss, items, batch["size"] = 0 * loss.nan_to_num(0.0, 0.0, 0.0), 0 * items, 0
                accelerator.backward(loss)
            # Numbers on the host are added up there: moving them to the device would wait for every piece.
            for place, number in enumerate((loss.detach(), items, on_host.new_tensor(batch["size"]))):
                sums = on_host if number.device.type == "cpu" else on_device
                sums[place] += number.to(sums.device).double()
    sums = moved(torch.cat([on_host, on_host.new_tensor([float(value) for value in extra()])]), device)
    sums[:3] += on_device
    return accelerator.reduce(sums).tolist()


def descend(model: nn.Module, optimizer, items: float, clip: float, accelerator) -> tuple[float, bool]:
    """Divide the gradient by the number of items, clip it, and make a step if it is finite.

    Returns:
        The norm before clipping, and whether it was finite.
    """
    # Gradients are summed over items and averaged over processes, and in fp16 scaled until they are clipped: so the
    # bound is scaled too, and the division comes last.
    per_item = accelerator.num_processes / (items or 1)
    norm = float(full_tensor(accelerator.clip_grad_norm_(model.parameters(), clip / per_item if clip else math.inf)))
    if finite := math.isfinite(norm):
        torch._foreach_mul_([local(p.grad) for p in model.parameters() if p.grad is not None], per_item)
    if finite or accelerator.scaler is not None:  # fp16: the scaler steps over it and learns that its scale is too high
        optimizer.step()
    optimizer.zero_grad()
    return norm * per_item, finite
