"""The loop: exact in items, exact in resuming, careful with what it has."""

import json
import os
import resource
import signal
from dataclasses import dataclass

import pytest
import torch

from d2v import losses
from d2v.config import Data, Optim, Run
from d2v.data.loaders import eval_loader, pad_labels, train_loader
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.training.loop import Interrupted, fit, predict, start
from d2v.training.resume import checkpoints, replace_folder

ROWS = [
    (torch.randn(int(n), generator=torch.Generator().manual_seed(int(n))), [1, 2, 3]) for n in range(1600, 3200, 100)
]
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


@dataclass
class Recipe:
    run: Run
    mode: str


def collate(rows):
    clips, labels = zip(*rows, strict=True)
    values = torch.nn.utils.rnn.pad_sequence(list(clips), batch_first=True)
    lengths = torch.tensor([[len(clip)] for clip in clips])
    mask = (torch.arange(values.shape[1]) < lengths).long()
    return {"input_values": values, "attention_mask": mask, "labels": pad_labels(labels), "size": lengths.sum().item()}


def train(out, *, loss_hook=None, scores=None, optim=None, arch=None, rows=4, **run):
    """A run of the loop on sixteen clips of noise; returns the model and the loop's counters."""
    run = Run(out=str(out), tracker=None, **({"max_steps": 12, "eval_every": 4, "log_every": 1} | run))
    optim = Optim(lr=1e-3, **(optim or {}))
    accelerator = start(Recipe(run, "train"))
    config = Data2VecAudioConfig(**CONFIG | (arch or {}))
    model = Data2VecAudioForCTC(config)
    calls = iter(scores or range(1000))

    def loss_fn(model, batch):
        if loss_hook:
            loss_hook(batch)
        logits = model(batch["input_values"], batch["attention_mask"]).logits
        frames = config.frames(batch["attention_mask"].sum(1))
        total, count = losses.ctc(logits, batch["labels"], frames, blank=0, zero_infinity=True)
        return (total * batch["poison"] if "poison" in batch else total), count

    lengths = [len(clip) for clip, _ in ROWS]
    progress = fit(
        model,
        train_loader(ROWS, lengths, collate, Data(batch_size=rows), 1e9, optim, run.seed, accelerator),
        loss_fn,
        lambda model: {"score": next(calls)},
        model.save_pretrained,
        run=run,
        optim=optim,
        accelerator=accelerator,
        metric="score",
        higher_is_better=True,
        unit="samples",
    )
    return model, progress


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def lines(out, key):
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


def test_an_update_does_not_depend_on_how_its_items_are_split_into_batches(tmp_path):
    """Four batches of one clip each, accumulated, are one batch of those four clips."""
    seen = {"whole": [], "split": []}
    _, _ = train(tmp_path / "a", arch=STILL, max_steps=1, loss_hook=seen["whole"].append, rows=16)
    whole, _ = train(tmp_path / "b", arch=STILL, max_steps=3, rows=16)
    split, _ = train(tmp_path / "c", arch=STILL, max_steps=3, rows=1, optim={"accumulation": 16})
    assert len(seen["whole"][0]["labels"]) == 16
    assert lines(tmp_path / "c", "loss") == pytest.approx(lines(tmp_path / "b", "loss"), rel=1e-5)
    assert torch.allclose(weights(split), weights(whole), atol=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, accumulation):
    """With dropout, masks, LayerDrop and a shuffled epoch that the interruption cuts in the middle: bit for bit."""
    optim = {"accumulation": accumulation, "freeze_encoder_steps": 3}
    straight, counters = train(tmp_path / "straight", optim=optim)
    batches = 0

    def interrupt(batch):
        nonlocal batches
        batches += 1
        if batches == 5 * accumulation:
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
    _, progress = train(tmp_path, max_steps=40, scores=[0.5, 0.9, 0.7, 0.8, 0.1], patience=3)
    assert (progress["best"], progress["best_step"], progress["step"]) == (0.9, 8, 20)
    assert lines(tmp_path, "eval_score") == [0.5, 0.9, 0.7, 0.8, 0.1]
    best = Data2VecAudioForCTC.from_pretrained(tmp_path / "best")
    last = torch.cat([p.flatten() for p in Data2VecAudioForCTC.from_pretrained(tmp_path / "best").parameters()])
    assert torch.equal(weights(best), last.detach())


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


def test_predictions_come_in_the_order_of_the_rows(tmp_path):
    accelerator = start(Recipe(Run(out=str(tmp_path), tracker=None), "evaluate"))
    lengths = [len(clip) for clip, _ in ROWS]
    batches = eval_loader(ROWS, lengths, collate, Data(batch_size=3), 6500, accelerator)
    model = Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG))
    assert predict(model, batches, lambda model, batch: batch["attention_mask"].sum(1).tolist(), accelerator) == lengths
    assert not model.training


def test_a_second_run_in_the_process_may_have_another_precision(tmp_path):
    train(tmp_path / "a", max_steps=1, precision="fp32")
    train(tmp_path / "b", max_steps=1, precision="bf16")


def test_precision_that_this_device_lacks_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU has fp16")
    with pytest.raises(InputError, match="run.precision fp16 needs a GPU"):
        train(tmp_path, precision="fp16")


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(InputError, match=r"run.tracker nowhere: "):
        start(Recipe(Run(out=str(tmp_path), tracker="nowhere"), "train"))
