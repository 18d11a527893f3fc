"""The loop: exact in items, exact in resuming, careful with what it has."""

import inspect
import json
import math
import os
import resource
import signal
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, fields
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from d2v import losses
from d2v.config import Data, Job, Optim, Recipe, Run
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.rows import Rows
from d2v.errors import InputError, Interrupted
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.training import loop
from d2v.training import resume as training_resume
from d2v.training.job import start
from d2v.training.loop import Progress, accumulate, descend, fit
from d2v.training.optim import build_optimizer
from d2v.training.prediction import predict
from d2v.training.resume import RandomState, checkpoints, load_checkpoint, replace_folder, save_checkpoint
from d2v.training.validation import TRYING, Tried, chosen_metrics
from tests.helpers import make_job, make_split

LENGTHS = list(range(1600, 3200, 100))
ITEMS = [{"clip": torch.randn(n, generator=torch.Generator().manual_seed(n)), "labels": [1, 2, 3]} for n in LENGTHS]
ROWS = Rows(make_split(clip=LENGTHS), list(map(str, LENGTHS)), LENGTHS, items=ITEMS)
CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8] * 7,
    "num_conv_pos_embedding_groups": 2,
    "num_conv_pos_embeddings": 1,
    "vocab_size": 5,
    "mask_time_prob": 0.3,
    "mask_time_length": 2,
    "layerdrop": 0.2,
}
STILL = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "final_dropout", "layerdrop"), 0.0)
STILL |= {"mask_time_prob": 0.0}


def collate(rows):
    clips, labels = [row["clip"] for row in rows], [row["labels"] for row in rows]
    values = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    lengths = torch.tensor([[len(clip)] for clip in clips])
    mask = (torch.arange(values.shape[1]) < lengths).long()
    return {"input_values": values, "attention_mask": mask, "labels": pad_labels(labels), "size": lengths.sum().item()}


class Numbers:
    """Batches without a length: the clips one after another, for ever."""

    def __init__(self):
        self.done = 0

    def __iter__(self):
        while True:
            self.done += 1
            yield [collate([ITEMS[self.done % 16]])]

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def train(out, *, loss_hook=None, scores=None, optim=None, arch=None, rows=4, batches=None, weight=1.0, **run):
    """A run of the loop on sixteen clips of noise; returns the model as it is in the end, and the loop's counters."""
    run = {"max_steps": 12, "eval_every": 4, "log_every": 1} | run
    optim = Optim(lr=1e-3, **(optim or {}))
    job = start(Recipe(data=Data(batch_size=rows), optim=optim, run=Run(str(out), tracker=None, **run)))
    settings = Data2VecAudioConfig(**CONFIG | (arch or {}))
    model = Data2VecAudioForCTC(settings)
    calls = iter(scores or range(1000))

    def loss_fn(model, batch):
        if loss_hook:
            loss_hook(batch)
        logits = model(batch["input_values"], batch["attention_mask"]).logits
        frames = settings.frames(batch["attention_mask"].sum(1))
        total, count = losses.ctc(logits, batch["labels"], frames, blank=0, zero_infinity=True)
        return weight * (total * batch["poison"] if "poison" in batch else total), weight * count

    def evaluate(model):
        if TRYING.get():
            raise Tried
        scores = next(calls)
        return scores if isinstance(scores, dict) else {"score": scores}

    batches = batches or train_loader(job, ROWS, collate)
    best = fit(job, model, batches, loss_fn, evaluate, metric="score")
    assert not best.training
    saved = torch.load(checkpoints(out)[-1] / "state.pt", weights_only=True)
    assert saved["format"] == 2
    return model, saved["states"]["progress"]


def start_of(out):
    """The accelerator of a run of one process."""
    return start(Recipe(run=Run(str(out / "other"), tracker=None))).accelerator


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def lines(out, key):
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


def test_an_update_does_not_depend_on_how_its_items_are_split_into_batches(tmp_path):
    """Sixteen batches of one clip, or one batch in four pieces, are one batch of sixteen clips."""
    seen = {"whole": [], "pieces": []}
    train(tmp_path / "a", arch=STILL, max_steps=1, loss_hook=seen["whole"].append, rows=16)
    whole, _ = train(tmp_path / "b", arch=STILL, max_steps=3, rows=16)
    batches, _ = train(tmp_path / "c", arch=STILL, max_steps=3, rows=1, optim={"batches": 16})
    pieces, _ = train(tmp_path / "d", arch=STILL, max_steps=3, rows=16, pieces=4, loss_hook=seen["pieces"].append)
    assert [len(batch["labels"]) for batch in seen["whole"]] == [16]
    assert [len(batch["labels"]) for batch in seen["pieces"]] == [4] * 12
    for split, name in ((batches, "c"), (pieces, "d")):
        assert lines(tmp_path / name, "loss") == pytest.approx(lines(tmp_path / "b", "loss"), rel=1e-5)
        assert (weights(split) - weights(whole)).norm() < 1e-4 * weights(whole).norm()


@pytest.mark.parametrize("batches", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, batches):
    """With dropout, masks, LayerDrop and a shuffled epoch that the interruption cuts in the middle: bit for bit."""
    optim = {"batches": batches, "freeze_encoder_steps": 3}
    straight, counters = train(tmp_path / "straight", optim=optim)
    computed = 0

    def interrupt(batch):
        nonlocal computed
        computed += 1
        if computed == 5 * batches:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved at update 5"):
        train(tmp_path / "cut", optim=optim, loss_hook=interrupt)
    torch.rand(100)  # the interrupted process's random numbers are lost
    resumed, again = train(tmp_path / "cut", optim=optim, resume=True, scores=[1, 2])
    assert torch.equal(weights(resumed), weights(straight))
    assert lines(tmp_path / "cut", "loss") == lines(tmp_path / "straight", "loss")
    assert again["step"] == counters["step"] == 12


def test_time_limit_stops_saved_and_resume_goes_on(tmp_path):
    _, progress = train(tmp_path, max_minutes=0.0)
    assert progress["step"] == 1 and [path.name for path in checkpoints(tmp_path)] == ["step-00000001"]
    assert (tmp_path / "best/model.safetensors").exists()
    _, progress = train(tmp_path, resume=True)
    assert progress["step"] == 12


def test_a_finished_run_is_neither_overwritten_nor_trained_on(tmp_path):
    model, _ = train(tmp_path)
    with pytest.raises(InputError, match="holds a run; --run.resume true"):
        train(tmp_path)
    again, progress = train(tmp_path, resume=True)
    assert torch.equal(weights(again), weights(model)) and progress["step"] == 12


def test_best_is_kept_and_patience_ends(tmp_path, capsys):
    last, progress = train(tmp_path, max_steps=40, scores=[0.5, 0.9, 0.7, 0.8, 0.1], patience=3, keep_last=9)
    assert (progress["best"], progress["best_step"], progress["step"]) == (0.9, 8, 20)
    assert lines(tmp_path, "eval_score") == [0.5, 0.9, 0.7, 0.8, 0.1]
    assert "(best so far: score 0.9000 at 8)" in capsys.readouterr().out  # of several metrics the one that chooses
    best = Data2VecAudioForCTC.from_pretrained(tmp_path / "best")
    at_the_best = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG))
    load_model(at_the_best, tmp_path / "checkpoints/step-00000008/model.safetensors")
    assert torch.equal(weights(best), weights(at_the_best)) and not torch.equal(weights(best), weights(last))


def test_the_last_checkpoints_are_kept(tmp_path):
    train(tmp_path, save_every=2, keep_last=3)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000008", "step-00000010", "step-00000012"]


def test_an_update_that_is_not_finite_is_skipped_and_counted(tmp_path):
    calls = 0

    def poison(batch):
        nonlocal calls
        calls += 1
        batch["poison"] = torch.tensor(float("nan") if calls in (2, 5) else 1.0)

    model, progress = train(tmp_path, loss_hook=poison, max_nonfinite=2)
    assert progress["skipped"] == 2 and progress["step"] == 12
    assert weights(model).isfinite().all()
    assert all(loss == loss for loss in lines(tmp_path, "loss"))


def test_many_in_a_row_stop_the_run_with_advice(tmp_path):
    def poison(batch):
        batch["poison"] = torch.tensor(float("inf"))

    with pytest.raises(InputError, match="3 updates in a row, up to update 3: lower optim.lr"):
        train(tmp_path, loss_hook=poison, max_nonfinite=3)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    train(tmp_path, max_steps=4)
    before = {path: path.read_bytes() for path in tmp_path.glob("checkpoints/step-00000004/*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        with pytest.raises(
            InputError, match=r"step-00000005: checkpoint cannot be written, .*step-00000004 is untouched"
        ):
            train(tmp_path, resume=True, save_every=1, eval_every=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(before) == 4 and all(path.read_bytes() == content for path, content in before.items())
    assert not (tmp_path / "checkpoints/unfinished").exists()
    _, progress = train(tmp_path, resume=True)
    assert progress["step"] == 12


def test_best_is_replaced_whole(tmp_path):
    folder = tmp_path / "best"
    replace_folder(folder, lambda path: (path / "a").write_text("1"))
    replace_folder(folder, lambda path: (path / "b").write_text("2"))
    assert [path.name for path in folder.iterdir()] == ["b"]
    with pytest.raises(OSError, match="full"):
        replace_folder(folder, lambda path: (_ for _ in ()).throw(OSError("full")))
    assert (folder / "b").read_text() == "2" and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_the_head_alone_learns_while_the_encoder_is_frozen(tmp_path):
    torch.manual_seed(0)
    before = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG))
    after, _ = train(tmp_path, max_steps=3, optim={"freeze_encoder_steps": 3})
    changed = {
        name
        for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {"lm_head.weight", "lm_head.bias"}


def test_predictions_come_in_the_order_of_the_rows_and_some_may_be_missing(tmp_path):
    job = start(Recipe(mode="evaluate", model="some", data=Data(batch_size=3), run=Run(str(tmp_path), tracker=None)))
    model = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG))

    def predict_fn(model, batch):
        return batch["attention_mask"].sum(1).tolist()

    assert predict(job, model, eval_loader(job, ROWS, collate), predict_fn) == list(enumerate(LENGTHS))
    assert not model.training

    def without_the_last(rows):
        kept = [row for row in rows if row["row"] != 15] or rows
        return {"rows": [row["row"] for row in kept]} | collate(kept)

    assert predict(job, model, eval_loader(job, ROWS, without_the_last), predict_fn) == list(enumerate(LENGTHS))[:-1]


def test_another_precision_is_another_run_in_the_same_process(tmp_path):
    kinds = []
    for name, precision in (("a", "fp32"), ("b", "bf16"), ("c", "fp32")):
        train(tmp_path / name, max_steps=1, precision=precision, loss_hook=lambda batch: kinds.append(autocast_dtype()))
    assert kinds == [torch.float32, torch.bfloat16, torch.float32]
    first, low, again = (lines(tmp_path / name, "loss")[0] for name in "abc")
    assert first == again != low


def autocast_dtype():
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def test_precision_that_this_device_lacks_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU has fp16")
    with pytest.raises(InputError, match="run.precision fp16 needs a GPU"):
        train(tmp_path, precision="fp16")


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(InputError, match=r"run.tracker nowhere: "):
        start(Recipe(run=Run(out=str(tmp_path), tracker="nowhere")))


def test_a_job_is_what_data_model_and_loop_have_in_common():
    assert [field.name for field in fields(Job)] == ["config", "accelerator", "recipe", "facts", "decoded", "shared"]
    with pytest.raises(FrozenInstanceError):
        make_job().recipe = "another"
    properties = {name for name, value in vars(Job).items() if isinstance(value, property)}
    assert properties == {"out", "training", "labelled", "is_main"}


def test_batches_need_no_length_where_the_number_of_updates_is_given(tmp_path):
    straight, _ = train(tmp_path / "straight", batches=Numbers())
    with pytest.raises(InputError, match="no known length; --run.max_steps says when training ends"):
        train(tmp_path / "no", batches=Numbers(), max_steps=None)
    train(tmp_path / "cut", batches=Numbers(), max_minutes=1e-9)
    resumed, progress = train(tmp_path / "cut", batches=Numbers(), resume=True)
    assert torch.equal(weights(resumed), weights(straight)) and progress["step"] == 12


def with_teacher(out, stop_after=None):
    """A second loop of the same parts: a student learns what an average of its own weights says of clean clips."""
    run = Run(str(out), tracker=None, max_steps=9, resume=True)
    job = start(Recipe(data=Data(batch_size=4), optim=Optim(lr=1e-3), run=run))
    student = Data2VecAudioModel(Data2VecAudioConfig(**CONFIG)).train()
    batches, progress, own = train_loader(job, ROWS, collate), Progress(), {"random": RandomState()}
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9)).requires_grad_(False).eval()
    prepared, optimizer = job.accelerator.prepare(student, build_optimizer(student, job.config.optim))
    states = {"model": student, "teacher": teacher, "optimizer": optimizer, "batches": batches, "progress": progress}
    if checkpoints(out):
        load_checkpoint(checkpoints(out)[-1], states, job.accelerator, own)

    def loss_fn(model, batch):
        inputs = batch["input_values"], batch["attention_mask"]
        with torch.no_grad():
            targets = teacher(*inputs).last_hidden_state
        difference = (model(*inputs).last_hidden_state - targets).square().sum((1, 2))
        return difference.sum(), torch.tensor(len(difference))

    for update in islice(batches, 9 - progress.step if stop_after is None else stop_after):
        _, items, *_ = accumulate(prepared, update, loss_fn, job.accelerator)
        _, finite = descend(prepared, optimizer, items, 1.0, job.accelerator)
        teacher.update_parameters(student)
        progress.count(finite)
        save_checkpoint(out, progress.step, states, job.accelerator, 2, own)
    return student, teacher


def test_a_loop_with_a_teacher_is_made_of_the_same_parts(tmp_path):
    assert len(inspect.getsource(with_teacher).splitlines()) <= 60
    straight = with_teacher(tmp_path / "straight")
    with_teacher(tmp_path / "killed", stop_after=4)
    torch.rand(9)  # what the killed process had as random numbers is lost
    resumed = with_teacher(tmp_path / "killed")
    for model, same in zip(straight, resumed, strict=True):
        assert torch.equal(weights(model), weights(same))
    assert not torch.equal(weights(straight[0]), weights(straight[1]))


def test_a_checkpoint_of_other_states_is_named(tmp_path):
    train(tmp_path, max_steps=1)
    with pytest.raises(InputError, match=r"step-00000001: a run goes on with .* optim.ema 0.9 \(was 0.0\)"):
        train(tmp_path, resume=True, optim={"ema": 0.9})
    path = checkpoints(tmp_path)[-1] / "state.pt"
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"format": 7}, path)
    with pytest.raises(InputError, match="has format 7, not 2; it was written by another d2v"):
        train(tmp_path, resume=True)
    torch.save(saved | {"processes": saved["processes"] * 2}, path)
    states, counts = {"progress": Progress()}, Progress()
    with pytest.raises(InputError, match="written by 2 processes, not 1, and each has its own stream; use as many"):
        load_checkpoint(checkpoints(tmp_path)[-1], states, start_of(tmp_path), {"stream": counts})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="state.pt: damaged; delete "):
        train(tmp_path, resume=True)


# ---------------------------------------------------------------------------------------------------------------------
# What chooses the best model
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([{"score": math.nan}, {"score": 0.5}, {"score": math.nan}], (0.5, 8)),  # was the best for ever
        ([{"score": math.inf}, {"score": 0.5}, {"score": 0.4}], (0.5, 8)),
        ([{"score": 0.5, "f1": 0.1}, {"score": 0.5, "f1": 0.2}, {"score": 0.5, "f1": 0.2}], (0.5, 8)),
        ([{"score": 0.5, "cer": 0.1}, {"score": 0.5, "cer": 0.2}, {"score": 0.5, "cer": 0.05}], (0.5, 12)),
        ([{"score": 0.5, "f1": math.nan}, {"score": 0.5, "f1": 0.2}, {"score": 0.4, "f1": 0.9}], (0.5, 8)),
    ],
)
def test_the_best_is_finite_and_a_second_metric_breaks_ties(tmp_path, scores, best):
    train(tmp_path, scores=scores)
    saved = json.loads((checkpoints(tmp_path)[-1] / "evaluated.json").read_text())
    assert (saved["best"], saved["best_step"]) == best


def test_a_run_whose_metric_is_never_finite_keeps_its_last_model(tmp_path):
    last, _ = train(tmp_path, scores=[{"score": math.nan}] * 3, patience=9)
    assert torch.equal(weights(Data2VecAudioForCTC.from_pretrained(tmp_path / "best")), weights(last))


def test_ties_that_a_second_metric_breaks_are_not_stale(tmp_path):
    scores = [{"wer": 1.0, "cer": 0.9 - i / 10} for i in range(5)]
    train(tmp_path, scores=scores, metric="wer,cer", patience=2, max_steps=20)
    assert lines(tmp_path, "eval_cer") == [pytest.approx(0.9 - i / 10) for i in range(5)]


def test_run_metric_chooses_and_is_checked(tmp_path):
    scores = [{"score": 0.9, "cer": 0.5}, {"score": 0.5, "cer": 0.4}, {"score": 0.7, "cer": 0.6}]
    train(tmp_path / "a", scores=scores, metric="cer")
    assert json.loads((checkpoints(tmp_path / "a")[-1] / "evaluated.json").read_text())["best_step"] == 8
    with pytest.raises(InputError, match=r"run.metric mer: evaluation gives score, cer; give one of them"):
        train(tmp_path / "b", scores=scores, metric="mer")
    _, progress = train(tmp_path / "b", scores=scores, metric="cer", resume=True)
    assert progress["step"] == 12 and lines(tmp_path / "b", "eval_cer") == [0.5, 0.4, 0.6]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("wer", ["wer", "cer"]), ("cer", ["cer", "wer"]), ("loss, wer", ["loss", "wer"])],
)
def test_chosen_metrics(wanted, names):
    assert chosen_metrics(wanted, {"wer": 0.5, "cer": 0.5, "loss": 1.0}) == names


# ---------------------------------------------------------------------------------------------------------------------
# A run's life
# ---------------------------------------------------------------------------------------------------------------------


def test_the_time_limit_is_of_the_session(tmp_path):
    """Time of earlier sessions counted, so that every later one made one update."""
    train(tmp_path, max_minutes=1e-9)
    path = checkpoints(tmp_path)[-1] / "evaluated.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 7200.0}))
    _, progress = train(tmp_path, resume=True, max_minutes=60)
    assert progress["step"] == 12 and progress["seconds"] > 7200


@pytest.mark.parametrize(
    ("moment", "saved", "left"),
    [("evaluation", 8, [1, 2]), ("saving", 9, [2]), ("the trial", 1, [0, 1, 2]), ("the last metrics", 12, [])],
)
def test_a_signal_at_another_moment_loses_nothing(tmp_path, monkeypatch, moment, saved, left):
    straight, _ = train(tmp_path / "straight")

    class Calls:
        """Scores as they come, with a signal and an end in the middle of the second evaluation."""

        def __init__(self):
            self.count = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.count += 1
            if self.count == 2 and moment == "evaluation":
                os.kill(os.getpid(), signal.SIGUSR1)
                raise Interrupted  # as `predict` does when it sees the signal
            if self.count == 3 and moment == "the last metrics":
                os.kill(os.getpid(), signal.SIGTERM)
            return self.count - 1

    if moment == "saving":
        write = training_resume.save_model

        def save(*args):
            write(*args)
            if "step-00000004" in {path.name for path in checkpoints(tmp_path / "cut")}:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(training_resume, "save_model", save)
    if moment == "the trial":
        monkeypatch.setattr(loop, "try_evaluation", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted, match=f"saved at update {saved}; --run.resume true"):
        train(tmp_path / "cut", scores=Calls())
    monkeypatch.undo()
    resumed, _ = train(tmp_path / "cut", scores=iter(left), resume=True)
    assert torch.equal(weights(resumed), weights(straight))
    for key in ("loss", "eval_score"):
        assert lines(tmp_path / "cut", key) == lines(tmp_path / "straight", key)


def test_a_failing_evaluation_is_repeated_and_costs_no_update(tmp_path):
    """Its checkpoint is written first; what the evaluation would have consumed of random numbers is not missed."""
    straight, _ = train(tmp_path / "straight")

    def scores():
        yield 0
        torch.rand(7)
        raise ValueError("a metric that fails")

    with pytest.raises(ValueError, match="fails"):
        train(tmp_path / "cut", scores=scores())
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000004", "step-00000008"]
    resumed, _ = train(tmp_path / "cut", scores=[1, 2], resume=True)
    assert torch.equal(weights(resumed), weights(straight))
    assert lines(tmp_path / "cut", "eval_score") == [0, 1, 2]


def test_weights_of_a_loss_that_are_small_throughout_change_nothing(tmp_path):
    """Class weights are weights of a mean: of an update with less than 1 in all, such as 0.18, too."""
    logs = []
    for weight in (1.0, 2**-10):
        train(tmp_path / str(weight), weight=weight, optim={"clip": 0.5}, arch=STILL)
        logs.append([lines(tmp_path / str(weight), key) for key in ("loss", "norm")])
    assert logs[0] == [pytest.approx(values, rel=1e-4) for values in logs[1]]


def test_a_checkpoint_every_so_many_minutes(tmp_path):
    train(tmp_path, save_minutes=0.0, eval_every=100, keep_last=20)
    assert len(checkpoints(tmp_path)) == 12


def test_another_rate_is_applied_and_said_and_another_seed_refused(tmp_path, capsys):
    train(tmp_path, max_steps=4)
    capsys.readouterr()
    with pytest.raises(InputError, match=r"step-00000004: .* run.seed 1 \(was 0\); give the old values, or another"):
        train(tmp_path, resume=True, seed=1)
    with pytest.raises(InputError, match=r"data.batch_size 8 \(was 4\), optim.batches 2 \(was 1\)"):
        train(tmp_path, resume=True, rows=8, optim={"batches": 2})
    assert "seed: 0" in (tmp_path / "config.yaml").read_text()  # that of the run is untouched
    quick, _ = train(tmp_path, resume=True, optim={"weight_decay": 0.0, "betas": (0.5, 0.6)}, eval_every=6, patience=7)
    said = capsys.readouterr().out
    assert "goes on with optim.betas [0.5, 0.6] (was [0.9, 0.98]), run.eval_every 6 (was 4), " in said
    slow, _ = train(tmp_path / "slow", max_steps=4)
    slow, _ = train(tmp_path / "slow", resume=True)
    assert not torch.equal(weights(quick), weights(slow))


def test_the_learning_rate_of_a_resumed_run_is_the_one_asked_for(tmp_path):
    """The log showed the new rate, the optimiser used the old one."""
    optim = {"schedule": "constant", "warmup": 0, "clip": 0.0, "betas": (0.0, 0.0)}
    train(tmp_path, max_steps=1, arch=STILL, optim=optim)
    before = weights(loaded(tmp_path))
    run = Run(str(tmp_path), tracker=None, max_steps=2, resume=True, eval_every=4, log_every=1)
    job = start(Recipe(data=Data(batch_size=4), optim=Optim(lr=1e-9, **optim), run=run))
    model = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG | STILL))

    def loss_fn(model, batch):
        logits = model(batch["input_values"], batch["attention_mask"]).logits
        return logits.square().sum(), torch.tensor(len(logits))

    fit(job, model, train_loader(job, ROWS, collate), loss_fn, lambda model: {"score": 1.0}, metric="score")
    assert (weights(loaded(tmp_path)) - before).abs().max() < 1e-8


def loaded(out):
    model = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG | STILL))
    load_model(model, checkpoints(out)[-1] / "model.safetensors")
    return model


def test_an_evaluation_that_cannot_work_shows_before_the_first_update(tmp_path):
    """Two batches are tried, the longest, and no random number is consumed by it."""
    job = start(Recipe(data=Data(batch_size=4), run=Run(str(tmp_path), tracker=None, max_steps=2)))
    model, seen, updates = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG)), [], []

    def predict_fn(model, batch):
        assert not model.training
        seen.append(batch["attention_mask"].sum(1).tolist())
        torch.rand(3)
        return [None] * len(seen[-1])

    def evaluate(model):
        predict(job, model, eval_loader(job, ROWS, collate), predict_fn)
        raise InputError("metrics")

    def loss_fn(model, batch):
        if not model.training:  # of validation
            return torch.zeros(()), torch.ones(())
        updates.append((model.training, torch.get_rng_state()))
        raise InputError("the first update")

    torch.manual_seed(0)
    expected = torch.get_rng_state()
    with pytest.raises(InputError, match="the first update"):
        fit(job, model, train_loader(job, ROWS, collate), loss_fn, evaluate, metric="score")
    assert seen == [LENGTHS[:-5:-1], LENGTHS[-5:-9:-1]]
    assert updates[0][0] and torch.equal(updates[0][1], expected)

    def broken(model, batch):
        raise InputError("cannot work")

    with pytest.raises(InputError, match="cannot work"):
        fit(
            *(job, model, train_loader(job, ROWS, collate), loss_fn),
            lambda model: predict(job, model, eval_loader(job, ROWS, collate), broken),
            metric="score",
        )
    assert len(updates) == 1


def test_sums_are_taken_on_the_host_where_the_device_has_no_float64(monkeypatch):
    """Of Apple's GPUs; `meta` stands for one, whose tensors cannot be mixed with the host's."""
    device = SimpleNamespace(type="mps")
    accelerator = SimpleNamespace(
        device=device, autocast=nullcontext, no_sync=lambda model: nullcontext(), backward=lambda loss: None
    )
    accelerator.reduce = lambda sums: sums
    monkeypatch.setattr("accelerate.utils.send_to_device", lambda batch, device, **options: batch)
    sums = accumulate(None, [{"size": 0.1}] * 3, lambda model, batch: (torch.tensor(0.5), torch.tensor(3)), accelerator)
    assert sums == [1.5, 9.0, 0.1 + 0.1 + 0.1]


class Casts(TorchDispatchMode):
    """Counts how often a tensor is cast."""

    def __init__(self, of):
        super().__init__()
        self.address, self.count = of.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and args[0].data_ptr() == self.address
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_an_update_and_for_an_evaluation(tmp_path):
    """In bf16, for any number of batches; gradients are those of casting for each, and changed weights are seen."""
    job = start(Recipe(data=Data(batch_size=2), run=Run(str(tmp_path), tracker=None, precision="bf16")))
    layer, accelerator = torch.nn.Linear(8, 3), job.accelerator
    inputs = [torch.randn(4, 8) for _ in range(3)]

    def loss_fn(model, batch):
        return model(batch["x"]).square().sum(), torch.tensor(4)

    with Casts(layer.weight) as casts:
        accumulate(layer, [{"x": x, "size": 4} for x in inputs], loss_fn, accelerator)
    assert casts.count == 1
    found, layer.weight.grad = layer.weight.grad, None
    for x in inputs:
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).square().sum().backward()
    assert torch.equal(found, layer.weight.grad)

    def predict_fn(model, batch):
        return model(torch.ones(len(batch["rows"]), 8)).sum(1).tolist()

    def predictions():
        return [value for _, value in predict(job, layer, eval_loader(job, ROWS, collate), predict_fn)]

    with Casts(layer.weight) as casts:
        before = predictions()
    assert casts.count == 1 and len(before) == 16
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    assert predictions() == [0.0] * 16 != before
