"""`recipes/pretrain_audio.py`, `pretrain_text.py` and `pretrain_vision.py` from end to end on tiny data."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.recipe import RECIPES
from d2v.errors import InputError
from tests.helpers import parse_command
from tests.recipes.common import runner, same_weights
from tests.tiny import STILL_AUDIO, TINY_AUDIO, TINY_TEXT, TINY_VISION, sentences, speech
from tests.training.test_device_traffic import check_first_update

STILL = STILL_AUDIO | {"mask_time_prob": 0.05}
STILL_TEXT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ARCH = {"audio": TINY_AUDIO, "text": TINY_TEXT, "vision": TINY_VISION | {"use_absolute_position_embeddings": True}}
QUIET = {"audio": STILL, "text": STILL_TEXT, "vision": {}}
SMALL = {
    "audio": ["--data.batch_size=3", "--data.mask_length=3", "--data.crop_seconds=0.5", "--teacher.layers=2"],
    "text": ["--data.batch_size=4", "--data.max_length=16", "--data.vocab_size=290", "--teacher.layers=2"],
    "vision": ["--data.batch_size=4", "--data.mask_block=4", "--teacher.layers=3"],
}
KINDS = list(ARCH)


def arguments(kind: str, **changes) -> list[str]:
    arch = [f"--arch.{key}={json.dumps(value)}" for key, value in {**ARCH[kind], **changes}.items()]
    return [*arch, *SMALL[kind], "--optim.lr=1e-3", "--run.log_every=1", "--run.precision=fp32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows of each modality, with labels that nobody looks at."""
    import datasets

    from tests.test_configs import photo

    folder = tmp_path_factory.mktemp("data")
    speech(folder / "audio", train=12, validation=4)
    for seed, (split, count) in enumerate({"train": 40, "validation": 9}.items()):
        for kind in ("text", "vision"):
            (folder / kind).mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict({"text": sentences(count, seed), "label": [0] * count})
        table.to_parquet(folder / f"text/{split}.parquet")
        rows = datasets.Dataset.from_list([photo(split, 100 * seed + i) for i in range(count // 2)])
        rows.cast_column("image", datasets.Image()).to_parquet(folder / f"vision/{split}.parquet")
    return folder


@pytest.mark.parametrize("options", [[], ["--economy.views=2", "--economy.width=16", "--economy.groups=4"]])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_update_asks_the_device_nothing(kind, options, data, tmp_path, monkeypatch):
    if kind == "text" and options:
        pytest.skip("of text, all is encoded")
    both = ["--auxiliary.weight=1", f"--data.path={data / kind}", f"--run.out={tmp_path}"]
    check_first_update(monkeypatch, f"pretrain_{kind}", *arguments(kind), *options, *both)


COLUMN = {"audio": "text", "text": "text", "vision": "label"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_looks_at_labels_and_changes_nothing(kind, data, tmp_path):
    """Every row of these texts is a class of its own, which none of validation has; images have two classes."""
    args = [*arguments(kind), f"--data.path={data / kind}", "--run.max_steps=2", "--run.eval_every=1"]
    runner(f"pretrain_{kind}")(*args, f"--run.out={tmp_path / 'without'}")
    probe = [f"--probe.column={COLUMN[kind]}", "--probe.rows=8"]
    results = runner(f"pretrain_{kind}")(*args, *probe, f"--run.out={tmp_path / 'with'}")
    same_weights(tmp_path / "with/best/model.safetensors", tmp_path / "without/best/model.safetensors")
    assert 0 <= results["probe_accuracy"] <= 1 and 0 <= results["probe_layer"] <= 4
    log = [json.loads(line) for line in (tmp_path / "with/log.jsonl").read_text("utf-8").splitlines()]
    assert sum("eval_probe_accuracy" in entry for entry in log) == 2
    with pytest.raises(InputError, match=r"train: no column 'speakr' \(probe.column\); there are "):
        runner(f"pretrain_{kind}")(*args, "--probe.column=speakr", f"--run.out={tmp_path / 'other'}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_passes_over_rows_that_training_skips(kind, data, tmp_path):
    """The first of train and of validation is damaged; a text that is not there is none."""
    import datasets

    column = {"audio": "audio", "text": "text", "vision": "image"}[kind]
    for split in ("train", "validation"):
        rows = datasets.load_dataset("parquet", data_files=str(data / kind / f"{split}.parquet"), split="train")
        plain = datasets.Image(decode=False) if kind == "vision" else rows.features[column]
        broken = rows.cast_column(column, plain).to_list()
        broken[0][column] = None if kind == "text" else damaged(broken[0][column])
        datasets.Dataset.from_list(broken, rows.cast_column(column, plain).features).to_parquet(
            tmp_path / f"data/{split}.parquet"
        )
    args = [*arguments(kind), f"--data.path={tmp_path / 'data'}", "--run.max_steps=1", f"--run.out={tmp_path / 'out'}"]
    labels = {"audio": "id", "text": "label", "vision": "label"}[kind]
    args += [f"--probe.column={labels}", "--data.bad_rows=skip"]
    assert 0 <= runner(f"pretrain_{kind}")(*args)["probe_accuracy"] <= 1


def damaged(file: dict) -> dict:
    """With a good header, so that the length of sound is known."""
    return file | {"bytes": file["bytes"][:100] + bytes(len(file["bytes"]) - 100)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_of_a_stream_is_refused(kind, data, tmp_path):
    args = [*arguments(kind), f"--data.path={data / kind}", "--run.max_steps=1", f"--run.out={tmp_path}"]
    with pytest.raises(InputError, match="probe.column does not go with streams"):
        runner(f"pretrain_{kind}")(*args, "--data.streaming=true", f"--probe.column={COLUMN[kind]}")


@pytest.fixture(scope="module", params=KINDS)
def trained(request, data, tmp_path_factory):
    kind, out = request.param, tmp_path_factory.mktemp("run") / "out"
    args = [*arguments(kind), f"--data.path={data / kind}", f"--run.out={out}", "--auxiliary.weight=0.5"]
    return kind, out, runner(f"pretrain_{kind}")(*args, "--run.max_steps=4", "--run.eval_every=2", pictures=True)


def log_of(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_run_leaves_what_it_should(trained):
    _, out, results = trained
    assert {"results.json", "curves.png", "best", "log.jsonl", "config.yaml"} <= {path.name for path in out.iterdir()}
    assert json.loads((out / "results.json").read_text("utf-8")) == results
    entries = log_of(out)
    every = {"loss", "target_rank", "prediction_rank", "front_rank", "target_deviation", "prediction_deviation"}
    every |= {"front_deviation", "unexplained", "half_life", "auxiliary_weight", "lr", "norm"}
    assert all(every <= entry.keys() for entry in entries if "lr" in entry)
    held_out = [entry for entry in entries if "eval_loss" in entry]
    assert [entry["step"] for entry in held_out] == [2, 4]
    assert held_out[-1]["eval_loss"] == results["loss"] > 0 and results["auxiliary_loss"] > 0
    assert (results["updates"], results["split"]) == (4, "validation")
    card = (out / "best/README.md").read_text("utf-8")
    (command,) = re.findall(r"^(accelerate launch .+)$", card, re.MULTILINE)
    name, config = parse_command(command)
    assert (config.model, config.mode) == ("best", "train") and not name.startswith("pretrain")


CLASSES = {"audio": "Data2VecAudioModel", "text": "Data2VecTextModel", "vision": "Data2VecVisionModel"}


def test_best_opens_in_transformers(trained):
    import transformers

    import d2v

    kind, out, _ = trained
    model, about = getattr(transformers, CLASSES[kind]).from_pretrained(out / "best", output_loading_info=True)
    assert about["unexpected_keys"] in ([], set())
    assert {key for key in about["missing_keys"] if not key.startswith("pooler.")} == set()
    ours = getattr(d2v, CLASSES[kind]).from_pretrained(out / "best", verbose=False).eval()
    torch.manual_seed(0)
    inputs = {"audio": torch.randn(2, 3200), "vision": torch.randn(2, 3, 24, 24), "text": torch.randint(5, 60, (2, 8))}
    with torch.no_grad():
        theirs = model.eval()(inputs[kind]).last_hidden_state
    assert torch.allclose(ours(inputs[kind]).last_hidden_state, theirs, atol=1e-4)


def test_a_recipe_goes_on_from_it(trained, data, tmp_path, capsys):
    kind, out, _ = trained
    args = {
        "audio": ["asr_ctc", "--data.batch_size=4"],
        "text": ["masked_lm", "--data.max_length=16"],
        "vision": ["image_classification", "--augment.mixup=0", "--augment.cutmix=0"],
    }[kind]
    common = [f"--model={out / 'best'}", f"--data.path={data / kind}", f"--run.out={tmp_path}", "--run.max_steps=1"]
    runner(args[0])(*args[1:], *common)
    heads = {"audio": "lm_head", "text": "lm_head", "vision": "classifier"}
    new = [line for line in capsys.readouterr().out.splitlines() if "newly initialised" in line]
    assert all(heads[kind] in line for line in new) and "encoder" not in "".join(new)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_exactly(kind, data, tmp_path):
    """Student, teacher and optimiser, bit for bit, with dropout and masks; stopped by the clock."""
    run = runner(f"pretrain_{kind}")
    args = [*arguments(kind), f"--data.path={data / kind}", "--run.max_steps=5", "--auxiliary.weight=1"]
    args += ["--auxiliary.until=0.6", "--run.eval_every=3"]
    straight = run(*args, f"--run.out={tmp_path / 'straight'}")
    stopped = [*args, f"--run.out={tmp_path / 'stopped'}", "--run.resume=true"]
    run(*stopped, "--run.max_minutes=1e-6")
    torch.rand(9)  # what the stopped process had as random numbers is lost
    results = run(*stopped)
    moment = {"peak_memory_mb"}
    assert {k: v for k, v in results.items() if k not in moment} == {
        k: v for k, v in straight.items() if k not in moment
    }
    for name in ("model", "teacher"):
        last = f"checkpoints/step-00000005/{name}.safetensors"
        same_weights(tmp_path / "straight" / last, tmp_path / "stopped" / last)
    same_weights(tmp_path / "straight/best/model.safetensors", tmp_path / "stopped/best/model.safetensors")
    losses = [[entry["loss"] for entry in log_of(tmp_path / name) if "lr" in entry] for name in ("straight", "stopped")]
    assert losses[0] == losses[1] and len(losses[0]) == 5


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize(
    ("kind", "field", "value"), [("audio", "mask_time_prob", 0), ("vision", "use_mask_token", False)]
)
def test_the_mask_embedding_is_there_whatever_the_options_say(kind, field, value, views, data, tmp_path):
    """And in what a run leaves: fine-tuning masks with it."""
    args = [*arguments(kind, **{field: value}), f"--data.path={data / kind}", f"--run.out={tmp_path}"]
    args += [f"--economy.views={views}", "--economy.width=16", "--economy.groups=4", "--run.max_steps=1"]
    runner(f"pretrain_{kind}")(*args)
    weights, config = load_file(tmp_path / "best/model.safetensors"), tmp_path / "best/config.json"
    assert {"audio": "masked_spec_embed", "vision": "embeddings.mask_token"}[kind] in weights
    assert json.loads(config.read_text("utf-8"))[field]


def test_what_is_never_learnt_is_not_kept(trained):
    """In several processes a pooler without a gradient would be looked for at every update."""
    import d2v

    kind, out, _ = trained
    assert not [name for name in load_file(out / "best/model.safetensors") if "pooler" in name]
    if kind == "text":  # whose heads for texts have poolers
        tasks = ("SequenceClassification", "MultipleChoice", "QuestionAnswering", "TokenClassification", "CausalLM")
        for task in tasks:
            getattr(d2v, f"Data2VecTextFor{task}").from_pretrained(out / "best", verbose=False)


@pytest.mark.parametrize("name", ["mixup", "cutmix", "smoothing"])
def test_what_is_for_labels_is_refused(name, data, tmp_path):
    args = [*arguments("vision"), f"--data.path={data / 'vision'}", f"--run.out={tmp_path}", "--run.max_steps=1"]
    with pytest.raises(InputError, match=f"augment.{name} is for labels, .* it should be 0"):
        runner("pretrain_vision")(*args, f"--augment.{name}=0.1")


def test_a_frozen_teacher(data, tmp_path):
    args = [*arguments("text"), f"--data.path={data / 'text'}", f"--run.out={tmp_path}", "--run.max_steps=2"]
    runner("pretrain_text")(*args, "--teacher.half_life=.inf", "--teacher.final_half_life=.inf")
    lines = [entry for entry in log_of(tmp_path) if "lr" in entry]
    assert len(lines) == 2 and not any("half_life" in entry for entry in lines)  # JSON has no infinity


def test_the_reference_arm_has_no_teacher(data, tmp_path):
    args = [*arguments("vision"), f"--data.path={data / 'vision'}", f"--run.out={tmp_path}", "--run.max_steps=2"]
    results = runner("pretrain_vision")(*args, "--teacher.weight=0", "--auxiliary.weight=1")
    assert "loss" not in results and results["auxiliary_loss"] > 0
    assert not list(tmp_path.glob("checkpoints/*/teacher.safetensors"))


def test_the_auxiliary_loss_is_that_of_a_frame(data, tmp_path):
    """It is learnt at all frames of speech, however many are masked; bins of variance 1 cost a new model about 1."""
    losses = []
    for share in (0.2, 0.6):
        args = [*arguments("audio"), f"--data.path={data / 'audio'}", f"--run.out={tmp_path / str(share)}"]
        args += ["--teacher.weight=0", "--auxiliary.weight=1", f"--data.mask_share={share}", "--optim.lr=1e-9"]
        losses.append(runner("pretrain_audio")(*args, "--run.max_steps=1")["auxiliary_loss"])
    assert all(0.8 < loss < 1.6 for loss in losses) and abs(losses[0] - losses[1]) < 0.2


def test_collapsed_targets_stop_the_run(data, tmp_path):
    """Of a frozen front end and one layer that say nothing: the student's weights are zero but for biases."""
    args = [*arguments("audio"), f"--data.path={data / 'audio'}", f"--run.out={tmp_path}", "--run.max_steps=40"]
    with pytest.raises(InputError, match=r"update \d+: the targets have collapsed, to an effective rank of .*optim.lr"):
        runner("pretrain_audio")(*args, "--alarm.rank=40", "--alarm.unexplained=9", "--optim.warmup=0")
    assert max(entry["step"] for entry in log_of(tmp_path)) == 5


def test_pieces_and_lengths_change_nothing(data, tmp_path):
    """An update is a set of rows: two pieces of a batch are the batch, since masks belong to rows."""
    run, losses = runner("pretrain_audio"), []
    for pieces in (1, 2):
        args = [*arguments("audio", **QUIET["audio"]), f"--data.path={data / 'audio'}", "--run.max_steps=3"]
        run(*args, f"--run.out={tmp_path / str(pieces)}", f"--run.pieces={pieces}")
        losses.append([entry["loss"] for entry in log_of(tmp_path / str(pieces)) if "lr" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(kind, data, tmp_path):
    """With a copy of student and teacher each, and with a share of them; the auxiliary loss ends in the middle."""
    args = [*arguments(kind, **QUIET[kind]), f"--data.path={data / kind}", "--run.max_steps=4", "--run.tracker=null"]
    args += ["--run.eval_every=4", "--auxiliary.weight=0.5", "--auxiliary.until=0.5"]
    script = str(RECIPES / f"pretrain_{kind}.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for name, command in (("one", [sys.executable]), ("two", torchrun), ("sharded", torchrun)):
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        environment["ACCELERATE_USE_FSDP"] = str(name == "sharded").lower()
        subprocess.run(
            [*command, script, *args, f"--run.out={tmp_path / name}"], check=True, env=environment, capture_output=True
        )
    one, *others = (log_of(tmp_path / name) for name in ("one", "two", "sharded"))
    for key in ("loss", "norm", "target_rank", "unexplained", "eval_loss", "eval_target_rank"):
        for log in others:
            assert [e[key] for e in one if key in e] == pytest.approx([e[key] for e in log if key in e], rel=1e-3), key


def test_rows_that_cannot_be_decoded_are_left_out_if_asked(data, tmp_path):
    import datasets

    rows = datasets.load_dataset("parquet", data_files=str(data / "vision/train.parquet"), split="train")
    broken = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    broken[3]["image"]["bytes"] = b"no picture"
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_list(broken).cast_column("image", datasets.Image()).to_parquet(
        tmp_path / "rows/train.parquet"
    )
    args = [*arguments("vision"), f"--data.path={tmp_path / 'rows'}", "--run.epochs=1", "--data.validation_share=0.2"]
    with pytest.raises(InputError, match=r"row 3: .*--data.bad_rows skip leaves such rows out"):
        runner("pretrain_vision")(*args, f"--run.out={tmp_path / 'refused'}")
    runner("pretrain_vision")(*args, f"--run.out={tmp_path / 'out'}", "--data.bad_rows=skip")
    facts = json.loads((tmp_path / "out/data.json").read_text("utf-8"))["facts"]
    assert [fact["rows"] for fact in facts if "cannot be decoded" in fact["fact"]] == [1]


@pytest.mark.parametrize("kind", KINDS)
def test_several_views_share_a_teacher(kind, data, tmp_path):
    args = [*arguments(kind), f"--data.path={data / kind}", "--run.max_steps=2", "--auxiliary.weight=1"]
    args += ["--economy.views=2", "--economy.width=16", "--economy.layers=1", "--economy.groups=4"]
    results = runner(f"pretrain_{kind}")(*args, f"--run.out={tmp_path}")
    assert results["loss"] > 0 and results["auxiliary_loss"] > 0
