"""The loop: exact in items, exact in resuming, careful with what it has."""

import inspect
import json
import os
import resource
import signal
from dataclasses import FrozenInstanceError, fields
from itertools import islice

import pytest
import torch
from safetensors.torch import load_model
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from d2v import losses
from d2v.config import Data, Job, Optim, Recipe, Run
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.data.rows import Rows
from d2v.errors import InputError, Interrupted
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.training.job import start
from d2v.training.loop import Progress, accumulate, descend, fit, predict
from d2v.training.optim import build_optimizer
from d2v.training.resume import RandomState, checkpoints, load_checkpoint, replace_folder, save_checkpoint
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


def train(out, *, loss_hook=None, scores=None, optim=None, arch=None, rows=4, batches=None, **run):
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
        return (total * batch["poison"] if "poison" in batch else total), count

    def evaluate(model):
        return {"score": next(calls)}

    batches = batches or train_loader(job, ROWS, collate)
    best = fit(job, model, batches, loss_fn, evaluate, metric="score")
    assert not best.training
    saved = torch.load(checkpoints(out)[-1] / "state.pt", weights_only=True)
    assert saved["format"] == 1
    return model, saved["states"]["progress"]


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


def test_best_is_kept_and_patience_ends(tmp_path):
    last, progress = train(tmp_path, max_steps=40, scores=[0.5, 0.9, 0.7, 0.8, 0.1], patience=3, keep_last=9)
    assert (progress["best"], progress["best_step"], progress["step"]) == (0.9, 8, 20)
    assert lines(tmp_path, "eval_score") == [0.5, 0.9, 0.7, 0.8, 0.1]
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
    assert len(before) == 2 and all(path.read_bytes() == content for path, content in before.items())
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
    assert [field.name for field in fields(Job)] == ["config", "accelerator", "recipe", "facts", "decoded"]
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
        progress.count(finite=finite, looking_for_scale=False)
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
    with pytest.raises(InputError, match=r"step-00000001: has no 'average'|average.safetensors"):
        train(tmp_path, resume=True, optim={"ema": 0.9})
    path = checkpoints(tmp_path)[-1] / "state.pt"
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"format": 7}, path)
    with pytest.raises(InputError, match="has format 7, not 1; it was written by another d2v"):
        train(tmp_path, resume=True)
    torch.save(saved | {"processes": saved["processes"] * 2}, path)
    with pytest.raises(InputError, match="written by 2 processes, not 1; use as many to resume"):
        train(tmp_path, resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="state.pt: damaged; delete "):
        train(tmp_path, resume=True)
