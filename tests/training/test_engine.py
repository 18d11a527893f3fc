"""How a model is spread over processes, here one: a group of one shards what it has whole, and has to compute the same.

What takes several processes is in `test_processes.py`.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from d2v.config import Optim, Recipe, Run
from d2v.data.loaders import eval_loader
from d2v.errors import InputError
from d2v.lora import add_lora
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.models.transformer import skip_layers, skipped_layers
from d2v.training import loop
from d2v.training.engine import (
    PATIENCE,
    blank,
    check_engine,
    in_step,
    shard,
    share_buffers,
    unsharded,
    wants,
    without_gradient,
    wrap,
)
from d2v.training.job import PREPARING, start
from d2v.training.loop import changing_gradients
from d2v.training.optim import averaged, build_average
from d2v.training.prediction import predict
from d2v.training.report import end_preparation
from d2v.training.resume import checkpoints
from tests.helpers import ROOT, make_job
from tests.training.test_loop import CONFIG, ROWS, STILL, collate, train

CPU = torch.device("cpu")


@pytest.fixture
def group():
    """This process has found itself, and Accelerate is configured for FSDP once `fsdp` is called."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def model(**changes):
    torch.manual_seed(0)
    return Data2VecAudioForCTC(Data2VecAudioConfig(**CONFIG | STILL | changes))


# ---------------------------------------------------------------------------------------------------------------------
# FSDP
# ---------------------------------------------------------------------------------------------------------------------


def test_a_sharded_run_is_the_same_run(tmp_path, group, monkeypatch):
    """With dropout, LayerDrop, pieces, a moving average, a frozen beginning; either goes on from the other's file."""
    optim = {"ema": 0.9, "freeze_encoder_steps": 2, "batches": 2}
    arch = {"num_hidden_layers": 3, "layerdrop": 0.4}
    options = {"optim": optim, "arch": arch, "max_steps": 6, "eval_every": 2, "keep_last": 9, "pieces": 2}
    train(tmp_path / "plain", **options)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    descend, kinds = loop.descend, set()

    def look(model, *rest):
        kinds.update(type(each) for each in model.parameters())
        return descend(model, *rest)

    monkeypatch.setattr(loop, "descend", look)
    sharded, _ = train(tmp_path / "sharded", **options)
    assert isinstance(sharded, FSDPModule) and kinds == {DTensor}
    one, other = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("plain", "sharded"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    one, other = (load_file(checkpoints(tmp_path / name)[-1] / "average.safetensors") for name in ("plain", "sharded"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for path in checkpoints(tmp_path / "sharded")[1:]:  # as if it had stopped after the first evaluation
        [file.unlink() for file in path.iterdir()], path.rmdir()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    train(tmp_path / "sharded", **options, resume=True, scores=[1, 2])
    one, other = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("plain", "sharded"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_what_is_kept_of_a_sharded_model_is_whole(tmp_path, group):
    """With an adapter and a moving average, which the weights change places with."""
    first = model()
    add_lora(first, 2)
    whole = {name: value.clone() for name, value in first.state_dict().items()}
    empty, average = blank(first), build_average(first, Optim(ema=0.9))
    assert {each.device.type for each in empty.parameters()} == {"meta"}
    for each in (first, average.module):
        shard(each, CPU)
    with torch.no_grad():
        for each in average.module.parameters():
            each.add_(1)
    job = start(Recipe(run=Run(str(tmp_path), tracker=None)))
    with averaged(first, average):
        kept = unsharded(job, first, empty)
        assert type(kept) is Data2VecAudioForCTC and hasattr(kept, "peft_config")
        parameters = {name for name, _ in kept.named_parameters()}
        assert all(torch.equal(each, whole[name] + (name in parameters)) for name, each in kept.state_dict().items())
    assert all(torch.equal(each, whole[name]) for name, each in unsharded(job, first, empty).state_dict().items())


@pytest.mark.parametrize("passes", [0, 3])
def test_who_has_fewer_passes_takes_part_in_those_of_others(group, monkeypatch, passes):
    """The others, played here, have five: also where this process has no row at all."""
    sharded, job, seen = model().eval(), make_job(), []
    shard(sharded, CPU)
    monkeypatch.setattr(Data2VecAudioForCTC, "output_lengths", None)
    reduce = torch.distributed.all_reduce

    def all_reduce(flag, *rest, **options):
        seen.append(float(flag))
        flag.add_(len(seen) <= 5)
        return reduce(flag, *rest, **options)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    loader = eval_loader(job, ROWS, collate)
    batch = collate([ROWS[0] | {"row": 0}])
    computed = []
    sharded.register_forward_hook(lambda *_: computed.append(1))

    def compute(batch):
        return sharded(batch["input_values"], batch["attention_mask"])

    with torch.no_grad(), in_step(sharded, loader, compute):
        for _ in range(passes):
            compute(batch)
    assert seen == [1.0] * passes + [0.0] * (6 - passes) and len(computed) == 5


def test_predictions_of_a_sharded_model_are_those_of_a_whole_one(group):
    job, plain = make_job(), model()
    job.accelerator.device, job.accelerator.autocast = CPU, torch.no_grad

    def predict_fn(model, batch):
        return model(batch["input_values"], batch["attention_mask"]).logits.sum((1, 2)).tolist()

    before = predict(job, plain, eval_loader(job, ROWS, collate), predict_fn)
    shard(plain, CPU)
    assert before == predict(job, plain, eval_loader(job, ROWS, collate), predict_fn)
    assert {type(each) for each in plain.parameters()} == {DTensor}  # shards again, for whoever reads them next


def test_configurations_for_accelerate_are_what_it_reads_and_the_recipes_take(monkeypatch):
    """Each as `accelerate launch --config_file` reads it; FSDP's gives the environment that shards."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    folder = ROOT / "recipes/configs/accelerate"
    assert sorted(path.stem for path in folder.iterdir()) == ["cpu", "eight_gpus", "fsdp", "one_gpu"]
    monkeypatch.setattr("accelerate.commands.launch.is_torch_xla_available", lambda **_: False)
    for path in folder.iterdir():
        words = ["--config_file", str(path), "recipes/asr_ctc.py"]
        args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert (args.use_fsdp, args.use_cpu) == (path.stem == "fsdp", path.stem == "cpu")
        assert args.num_processes == (1 if path.stem in ("cpu", "one_gpu") else 8)
        assert args.mixed_precision == ("no" if path.stem == "cpu" else "bf16")
        if path.stem == "fsdp":
            for name, value in prepare_multi_gpu_env(args).items():
                if name.startswith(("ACCELERATE", "FSDP")):
                    monkeypatch.setenv(name, str(value))
            assert wants("FSDP")
            check_engine()


def test_training_waits_less_than_preparation(tmp_path):
    """A process that hung had the others wait for a day."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=PREPARING)
    try:
        options = torch.distributed.group.WORLD._get_backend(CPU).options
        job = start(Recipe(run=Run(str(tmp_path), tracker=None)))
        assert options._timeout == PREPARING
        end_preparation(job, None)
        assert options._timeout == PATIENCE < PREPARING
    finally:
        destroy_process_group()


def test_fp16_does_not_go_with_shards(tmp_path, group, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"run.precision fp16"):
        start(Recipe(run=Run(str(tmp_path), precision="fp16", tracker=None)))


# ---------------------------------------------------------------------------------------------------------------------
# DDP and LayerDrop
# ---------------------------------------------------------------------------------------------------------------------


class Listener(nn.Linear):
    """Notes where what it is called with is."""

    def forward(self, x, attention_mask):
        self.heard = [attention_mask.device.type, x["masked"].device.type]
        return super().forward(x["values"])


def test_ddp_leaves_on_the_host_what_shapes_are_made_of(group):
    """Accelerate names the device, here played by `meta`, to which it would move masks: each pass would wait for it."""

    def prepare(model):
        ddp = nn.parallel.DistributedDataParallel(model)
        ddp.device_type, ddp.device_ids = "meta", [0]
        return ddp

    job, listener = make_job(processes=2), Listener(2, 1)
    job.accelerator.prepare, job.accelerator.ddp_handler = prepare, SimpleNamespace()
    batch = {"values": torch.ones(1, 2), "masked": torch.ones(1, 2)}
    wrap(job, listener, ["other blocks are skipped"], torch.zeros)(batch, attention_mask=torch.ones(1, 2))
    assert listener.heard == ["cpu", "cpu"]


def test_parameters_without_a_gradient_are_found():
    """Of one model none is, of one whose masks are never used one is, which DDP would wait for."""
    batch = collate([ROWS[i] for i in range(3)])
    reasons = {}
    for name, changes in {"none": {}, "masks": {"mask_feature_prob": 0.1, "mask_feature_length": 2}}.items():
        one = model(**changes).train()
        reasons[name] = without_gradient(one, one(batch["input_values"], batch["attention_mask"]).logits.sum())
    assert reasons == {"none": [], "masks": ["data2vec_audio.masked_spec_embed has none"]}
    one.gradient_checkpointing_enable()
    loss = one(batch["input_values"], batch["attention_mask"]).logits.sum()
    assert without_gradient(one, loss) == reasons["masks"]
    one.freeze_base_model()
    loss = one(batch["input_values"], batch["attention_mask"]).logits.sum()
    assert without_gradient(one, loss) == []  # what is not trained is not waited for


def test_batch_statistics_are_the_main_processes_before_they_are_saved_and_evaluated(tmp_path, monkeypatch):
    """DDP shares them at the next forward pass in training alone, so each process would validate another model."""
    norm, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    share_buffers(norm)  # a single process has nobody to ask
    shared = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: shared.append((tensor, source)))
    share_buffers(norm, None, average)
    wanted = [norm.running_mean, norm.running_var, average.running_mean, average.running_var]
    assert all(mine is other for (mine, _), other in zip(shared, wanted, strict=True))
    assert {source for _, source in shared} == {0}


def test_what_changes_from_update_to_update_is_known_beforehand():
    frozen = "the encoder is frozen at first"
    assert changing_gradients(model(), Optim(), 0) == []
    assert changing_gradients(model(layerdrop=0.1), Optim(), 5) == ["LayerDrop skips other blocks each time"]
    assert changing_gradients(model(), Optim(freeze_encoder_steps=3), 2) == [frozen]
    assert changing_gradients(model(), Optim(freeze_encoder_steps=3), 3) == []


def test_layers_are_skipped_by_seed_and_update():
    config = {"num_hidden_layers": 12, "layerdrop": 0.3}
    one, other = model(**config).train(), model(**config).train()
    torch.rand(5)  # another process draws other numbers
    seen, stacks = [], [each for each in one.modules() if hasattr(each, "skipped")]
    assert len(stacks) == 1 and stacks[0].skipped is None
    for step in range(60):
        skip_layers(one, 1, step)
        skip_layers(other, 1, step)
        assert [each.skipped for each in other.modules() if hasattr(each, "skipped")] == [x.skipped for x in stacks]
        seen.append(frozenset(stacks[0].skipped))
    assert len(set(seen)) > 30 and abs(sum(map(len, seen)) / (60 * 12) - 0.3) < 0.08
    assert skipped_layers(stacks[0]) == seen[-1] and skipped_layers(stacks[0].eval()) == ()
    skip_layers(nn.Linear(2, 2), 1, 0)
