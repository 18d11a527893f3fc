"""Pretraining: a loop made of the parts of `d2v.training.loop`, and its output.

The method makes the loop differ from fine-tuning's: a teacher follows the student, and the loss is no measure of
progress, since its targets move; so other figures tell whether the targets are still informative.
"""

import math
import time
from collections.abc import Callable, Sequence, Sized
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from d2v import losses
from d2v.config import Job
from d2v.data.facts import note_decoded, say_decoded
from d2v.errors import InputError, Interrupted
from d2v.hub import write_json
from d2v.metrics.pretraining import Moments
from d2v.models.pretraining import PretrainingOutput, Student, Teacher
from d2v.models.transformer import skip_layers
from d2v.pretrained import push_folder
from d2v.training.engine import blank, host_of_sums, in_step, shard, sharding, to_device, unsharded
from d2v.training.identity import run_identity
from d2v.training.log import open_log, read_log
from d2v.training.loop import (
    Progress,
    accumulate,
    changing_gradients,
    check_finite,
    descend,
    interrupted_run,
    next_update,
    reasons_to_stop,
    schedule,
    set_lr,
    stop_if_asked,
    wrap_for,
)
from d2v.training.memory import TRIMMED, out_of_memory, trim
from d2v.training.optim import build_optimizer, lr_scale, warm_up
from d2v.training.report import FILES, end_preparation, peak_memory_mb, write_model_card
from d2v.training.resume import (
    RandomState,
    go_on,
    note_evaluation,
    replace_folder,
    save_checkpoint,
)
from d2v.training.signals import hold_signals
from d2v.training.teaching import Alarm

ONE = 1.2
"""Effective rank below which all predictions, or all targets, have the same direction.

In trials healthy runs had at least 1.7 (speech, after the warm-up); at 30 times the learning rate predictions fell
below 1.1 for good.
"""


class CollapseAlarm:
    """Stops a run after `patience` consecutive log lines that show collapsed targets."""

    def __init__(self, alarm: Alarm):
        self.alarm, self.bad = alarm, 0

    def check(self, figures: dict[str, float], step: int, ready: bool = True) -> None:
        """Raise InputError if the targets have collapsed.

        Args:
            figures: from `d2v.metrics.pretraining.Moments`.
            step: updates done.
            ready: False while the learning rate rises: predictions have no variance at first.
        """
        alarm = self.alarm
        if not ready or not alarm.patience or "target_rank" not in figures:
            return
        flat = min(figures["target_deviation"], figures["prediction_deviation"]) < alarm.deviation
        narrow = figures["target_rank"] < alarm.rank and figures["unexplained"] < alarm.unexplained
        alike = min(figures["target_rank"], figures["prediction_rank"]) < ONE
        self.bad = self.bad + 1 if flat or narrow or alike else 0
        if self.bad >= alarm.patience:
            raise InputError(
                f"update {step}: the targets have collapsed, to an effective rank of {figures['target_rank']:.1f} with "
                f"{figures['unexplained']:.0%} of their variance left to predict, by predictions of rank "
                f"{figures['prediction_rank']:.1f}; lower optim.lr, raise optim.warmup "
                "or teacher.half_life, normalise the targets, or begin with auxiliary.weight 1"
            )

    def state_dict(self) -> dict[str, Any]:
        """The number of such lines so far."""
        return {"bad": self.bad}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Continue from this number."""
        self.bad = state["bad"]


def pretrain(
    job: Job,
    student: Student,
    teacher: Teacher | None,
    batches: Any,
    held_out: DataLoader,
    auxiliary_loss: Callable[[Tensor, dict[str, Any]], Tensor],
    *,
    keep: Sequence[Any] = (),
    probe: Callable[[Any], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train, and write `checkpoints/`, `best/`, `log.jsonl` and `curves.png` in `run.out`.

    Args:
        job: whose configuration is a `Pretraining`.
        student, teacher: from `d2v.training.teaching.student_and_teacher`.
        batches: from `train_loader`; batches have what `d2v.models.pretraining.views` reads.
        held_out: from `eval_loader`, with the same masks each time.
        auxiliary_loss: of the auxiliary outputs (N, C) and their batch, summed over the N positions.
        keep: the model's processor, tokenizer and the like, saved beside it.
        probe: from `d2v.training.probe.build_probe`.

    Returns:
        The figures of the last evaluation.

    Raises:
        InputError: the targets have collapsed, a checkpoint cannot be read or written, or the loss is not finite.
        Interrupted: a signal came; the run is saved.
        Prepared: in `--mode prepare`, before anything is trained.
    """
    from accelerate.utils import gather_object

    end_preparation(job, batches)
    config, accelerator, out = job.config, job.accelerator, job.out
    run, optim, teaching = config.run, config.optim, config.teacher
    epoch, total, eval_every, save_every = schedule(job, batches)
    made_of = run_identity(job, batches, student.base_model, keep)
    student.gradient_checkpointing_enable(run.gradient_checkpointing)
    for network in (student.train(), teacher):
        if network is not None:
            network.to(accelerator.device)
    empty = blank(student)
    if sharding():
        shard(student, accelerator.device)
    optimizer = accelerator.prepare(build_optimizer(student, optim))  # type: ignore[arg-type]

    torch.manual_seed(run.seed + accelerator.process_index)  # each process its own dropout
    progress, alarm, moments = Progress(), CollapseAlarm(config.alarm), Moments()
    own = {"random": RandomState()}
    states = {"model": student, "teacher": teacher, "optimizer": optimizer, "batches": batches}
    states |= {"progress": progress, "alarm": alarm, "scaler": accelerator.scaler}
    go_on(job, states, own, made_of)
    begun = saved = time.monotonic()
    spent = progress.seconds  # in earlier sessions
    log = open_log(job, progress, total)

    def parts(output: PretrainingOutput, batch: dict[str, Any], weight: float) -> tuple[Tensor, Tensor]:
        """The weighted sums of both losses over their positions; 0 for a loss that was not computed."""
        regression = auxiliary = output.front.new_zeros(())
        if output.targets is not None and output.predictions is not None:
            options = {"beta": teaching.beta, "reduction": teaching.reduction}
            regression = teaching.weight * losses.regression(output.predictions, output.targets, **options)[0]
        if output.auxiliary is not None:
            auxiliary = weight * auxiliary_loss(output.auxiliary, batch)
        return regression, auxiliary

    def loss_fn(model, batch, weight: float):
        output = model(batch, teacher, weight > 0)
        moments.add(output, batch.get("counts", True))
        return sum(parts(output, batch, weight)), batch["masked"].sum()

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        student.eval()
        seen, sums = Moments(), torch.zeros(4, dtype=torch.float64, device=host_of_sums(accelerator.device))
        decoded: list[Any] = []

        def look(batch: dict[str, Any]) -> None:
            nonlocal sums
            batch = to_device(batch, accelerator.device)
            with accelerator.autocast(), out_of_memory(job, [batch], held_out, "evaluation"):
                output = student(batch, teacher)
                found = parts(output, batch, config.auxiliary.weight)
            at = (batch["masked"], batch.get("auxiliary_at", batch["masked"]))  # where each loss is taken
            sums += torch.stack([each.to(sums.device).double() for each in (*found, *(places.sum() for places in at))])
            seen.add(output)

        with in_step(student, held_out, look):
            for batch in held_out:
                decoded += batch.pop("decoded", ())
                if batch["rows"]:  # some could be decoded
                    look(batch)
        note_decoded(job, gather_object(decoded))
        found, counts = accelerator.reduce(sums).view(2, 2).tolist()
        probed = probe(student.base_model) if probe else {}
        student.train()
        values = [total / max(count, 1) for total, count in zip(found, counts, strict=True)]
        means = {"loss": values[0]} if teacher else {}
        means |= {"auxiliary_loss": values[1]} if config.auxiliary.weight > 0 else {}
        return means | seen.figures() | probed

    def evaluate_and_keep() -> dict[str, float]:
        metrics, progress.evaluated = evaluate(), progress.step
        log.write(progress.step, {f"eval_{key}": value for key, value in metrics.items()})
        complete = unsharded(job, student, empty)
        if job.is_main:
            shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
            log.bar.write(f"update {progress.step}: held-out {shown}")
            replace_folder(out / "best", lambda folder: save_base(complete, folder, keep))
            note_evaluation(out, progress)
        say_decoded(job)
        log.reset()
        return metrics

    def asked() -> list[bool]:
        return reasons_to_stop(run, begun, saved)

    metrics: dict[str, float] = {}
    with hold_signals(), interrupted_run(out), closing(log):
        if progress.evaluated < progress.step and (progress.step % eval_every == 0 or progress.step >= total):
            metrics = evaluate_and_keep()  # the evaluation that was cut off
        changing = changing_gradients(student, optim, progress.step)
        changing += ["the auxiliary loss fades out"] * (config.auxiliary.until is not None)
        first_loss = partial(loss_fn, weight=config.auxiliary.at(progress.step, total))
        over = progress.step >= total
        prepared, updates = wrap_for(job, student, iter(batches), first_loss, changing, over)
        moments, resumed = Moments(), progress.step
        while progress.step < total:
            skip_layers(student, run.seed, progress.step)
            update, waited = next_update(job, updates)
            scale, weight = lr_scale(progress.step, total, optim), config.auxiliary.at(progress.step, total)
            set_lr(optimizer, scale)
            decay = teaching.decay(progress.step, total)

            with out_of_memory(job, update, batches, f"update {progress.step + 1}"):
                loss, items, size, *asked_for = accumulate(
                    prepared, update, partial(loss_fn, weight=weight), accelerator, extra=asked
                )
                norm, finite = descend(prepared, optimizer, items, optim.clip, accelerator)
            finite = finite and math.isfinite(loss)
            if teacher is not None:
                teacher.update(student, decay)

            progress.count(finite, accelerator.scaler)
            progress.seconds = spent + time.monotonic() - begun
            log.add(loss if finite else 0.0, items if finite else 0.0, size, waited)
            now = progress.step
            if now % run.log_every == 0 or now == total:
                figures, moments = moments.figures(), Moments()
                values = {"epoch": now / epoch} if epoch else {}
                values |= {"seconds": progress.seconds, "skipped": progress.skipped}
                values["auxiliary_weight"] = weight
                if math.isfinite(forgotten := half_life(decay)):  # a frozen teacher's is infinite, which JSON lacks
                    values["half_life"] = forgotten
                log.say(now, lr=optim.lr * scale, norm=norm, **values, **figures)
                whole = now - run.log_every >= resumed  # after resuming, the first line may cover a single batch
                alarm.check(figures, now, ready=whole and now > warm_up(optim, total))
            check_finite(run, progress, "optim.lr or raise optim.warmup")
            if now % TRIMMED == 0:
                trim(accelerator.device)
            interrupt, out_of_time, _ = asked_for
            due = now % eval_every == 0 or now == total or out_of_time
            if due or now % save_every == 0 or any(asked_for):
                save_checkpoint(out, now, states, accelerator, run.keep_last, own, made_of)
                saved = time.monotonic()
            if interrupt:
                raise Interrupted
            if due:
                metrics = evaluate_and_keep()
            if out_of_time:
                break
        metrics = metrics or evaluate()
        stop_if_asked(job)
    return metrics


def half_life(decay: float) -> float:
    """Updates in which a moving average forgets half of its past; infinite if it forgets nothing."""
    if decay >= 1:
        return math.inf
    return math.log(0.5) / math.log(decay) if decay > 0 else 0.0


def save_base(student: Student, folder: Path, keep: Sequence[Any]) -> None:
    """Save the student without its heads, and `keep`: the model that other recipes start from."""
    for part in (student.base_model, *keep):
        part.save_pretrained(folder)


def finish_pretraining(job: Job, metrics: dict[str, float], rows: Sized, *, demo: str, then: str) -> dict[str, Any]:
    """End a run: `results.json`, a model card, `curves.png`, the model pushed if asked for, and a summary.

    Args:
        job: from `d2v.training.job.start`; its main process writes.
        metrics: of the last evaluation.
        rows: of the last evaluation.
        demo: name of the embedded data.
        then: a recipe that starts from the model.

    Returns:
        The content of `results.json`.
    """
    last = read_log(job.out / "log.jsonl")[-1:]
    results = metrics | {"split": "validation", "examples": len(rows), "peak_memory_mb": peak_memory_mb()}
    results |= {"updates": last[0]["step"] if last else 0}
    if job.is_main:
        write_json(job.out / "results.json", results)
        about = {"task": "feature-extraction", "demo": demo, "use": f"recipes/{then}.py"}
        write_model_card(job, results=results, metrics=list(metrics), **about)
        plot_pretraining(job.out)
        if job.config.run.push:
            print(f"pushed to {push_folder(job.out / 'best', job.config.run.push, private=job.config.run.private)}")
        lines = [(key, f"{value:.4f}") for key, value in metrics.items()]
        files = FILES | {"best": "model to start from", "curves.png": "losses, and the spread of targets, over updates"}
        lines += [(str(job.out / name), what) for name, what in files.items() if (job.out / name).exists()]
        print("\n".join(f"{left:<{max(len(each) for each, _ in lines)}}  {right}" for left, right in lines))
    return results


def plot_pretraining(out: Path) -> None:
    """Draw `curves.png` from `log.jsonl`: the loss, and the figures that tell whether it means anything."""
    from matplotlib.figure import Figure

    log = read_log(out / "log.jsonl")
    ranks = [f"{name}_rank" for name in ("target", "prediction", "front")]
    panels = {
        "loss, in training of both targets": ["loss", "eval_loss", "eval_auxiliary_loss"],
        "unexplained share of the targets' variance": ["unexplained", "eval_unexplained"],
        "effective rank": [*ranks, "eval_target_rank"],
        "standard deviation": [name.replace("rank", "deviation") for name in ranks],
    }
    if any("eval_probe_accuracy" in entry for entry in log):
        panels["accuracy of the probe, on validation"] = ["eval_probe_accuracy"]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            if points:
                axis.plot(*zip(*points, strict=True), label=key.replace("eval_", "held-out "))
        axis.set(xlabel="updates", title=title, ylim=(0, None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    figure.savefig(out / "curves.png", dpi=100)
