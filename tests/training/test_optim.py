"""Learning rates against torch's schedulers, fairseq's definition of tri-stage and hand values; parameter groups."""

import math
import random

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import d2v
from d2v.config import Data, Lora, Optim, Run
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.audio_heads import Data2VecAudioForCTC
from d2v.training.optim import averaged, build_average, build_optimizer, layer_of, lr_scale, note_warm_up, param_groups
from tests.helpers import make_job

TINY = Data2VecAudioConfig(
    hidden_size=8,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=12,
    conv_dim=(4, 4),
    conv_stride=(2, 2),
    conv_kernel=(3, 3),
    num_conv_pos_embeddings=2,
    conv_pos_kernel_size=3,
    num_conv_pos_embedding_groups=2,
    vocab_size=5,
)


def course(total, **options):
    """The learning rate of every update, as a share of the peak."""
    return [lr_scale(step, total, Optim(**options)) for step in range(total)]


def torch_course(total, make):
    """The same by a `torch.optim.lr_scheduler` with peak 1."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_equal_torch(warmup):
    # torch's warm-up ends at its last step, ours one before: its first `warmup` values are (i + 1) / warmup.
    schedules = torch.optim.lr_scheduler
    after = {
        "linear": lambda o: schedules.LinearLR(o, 1.0, 0.0, 30 - warmup),
        "cosine": lambda o: schedules.CosineAnnealingLR(o, 30 - warmup),
        "constant": lambda o: schedules.ConstantLR(o, 1.0),
    }
    rise = [(i + 1) / warmup for i in range(warmup)]
    for schedule, make in after.items():
        expected = rise + torch_course(30 - warmup, make)
        assert course(30, schedule=schedule, warmup=warmup) == pytest.approx(expected, abs=1e-12)


def test_values_by_hand():
    options = {"warmup": 2, "start_scale": 0.1, "final_scale": 0.2}
    half = {"linear": 0.6, "cosine": 0.6}
    for schedule, middle in half.items():
        found = course(10, schedule=schedule, **options)
        assert found[:3] == pytest.approx([0.55, 1.0, 1.0])  # up from 0.1 in two steps; update 2 has gone nowhere yet
        assert found[6] == pytest.approx(middle)
        assert lr_scale(10, 10, Optim(schedule=schedule, **options)) == pytest.approx(0.2)


def test_warmup_as_share_is_warmup_in_updates():
    for schedule in ("linear", "cosine", "tri_stage"):
        options = {"schedule": schedule, "final_scale": 0.1}
        assert (
            course(50, warmup=0.2, **options) == course(50, warmup=10, **options) == course(50, warmup=10.0, **options)
        )
    assert course(50, warmup=0.2)[:10] == pytest.approx([i / 10 for i in range(1, 11)])


def fairseq_tri_stage(num_updates, max_update, ratios, init_scale, final_scale):
    """fairseq/optim/lr_scheduler/tri_stage_lr_scheduler.py: `_decide_stage` and `step_update`, with peak 1."""
    warmup, hold, decay = (int(max_update * ratio) for ratio in ratios)
    decay_factor = -math.log(final_scale) / decay
    if num_updates < warmup:
        return init_scale + (1 - init_scale) / warmup * num_updates
    if num_updates < warmup + hold:
        return 1.0
    if num_updates <= warmup + hold + decay:
        return math.exp(-decay_factor * (num_updates - warmup - hold))
    return final_scale


@pytest.mark.parametrize("ratios", [(0.1, 0.4, 0.5), (0.0, 0.5, 0.5), (0.25, 0.0, 0.75)])
def test_tri_stage_is_fairseqs(ratios):
    # int(0.1 * 200) and the like are exact here, so rounding down and to the nearest agree.
    options = {
        "schedule": "tri_stage",
        "start_scale": 0.01,
        "final_scale": 0.05,
        "warmup": ratios[0],
        "hold": ratios[1],
    }
    expected = [fairseq_tri_stage(step, 200, ratios, 0.01, 0.05) for step in range(201)]
    assert course(200, **options) == pytest.approx(expected[:200], rel=1e-12)
    assert lr_scale(200, 200, Optim(**options)) == pytest.approx(0.05)
    warmup, hold = round(200 * ratios[0]), round(200 * (ratios[0] + ratios[1]))
    if warmup:
        assert course(200, **options)[0] == 0.01
    assert course(200, **options)[warmup] == course(200, **options)[hold] == 1.0
    assert course(200, **options)[hold + 1] < 1.0


def test_scale_is_a_pure_function_within_its_bounds():
    generator = random.Random(0)
    for _ in range(300):
        total = generator.randint(1, 60)
        optim = Optim(
            schedule=generator.choice(["linear", "cosine", "tri_stage", "constant"]),
            warmup=generator.choice([0, 0.5, generator.randint(1, 80)]),
            hold=generator.uniform(0, 0.5),
            start_scale=generator.random(),
            final_scale=generator.uniform(0.01, 1),
        )
        lowest = min(optim.start_scale, optim.final_scale)
        values = [lr_scale(step, total, optim) for step in range(total + 5)]
        assert all(lowest - 1e-9 <= value <= 1 + 1e-9 for value in values), optim
        assert values[::-1] == [lr_scale(step, total, optim) for step in reversed(range(total + 5))]


def by_name(model, groups):
    """Name -> (learning rate, weight decay), each parameter once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        assert group["peak_lr"] == group["lr"]
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_no_decay_on_vectors_and_nothing_twice_or_frozen():
    model = Data2VecAudioForCTC(TINY)
    found = by_name(model, param_groups(model, Optim(lr=0.5, weight_decay=0.1)))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert found[name] == (0.5, 0.1 if parameter.ndim > 1 else 0.0)
    assert found["data2vec_audio.masked_spec_embed"][1] == found["lm_head.bias"][1] == 0.0

    model.freeze_feature_encoder()
    rest = by_name(model, param_groups(model, Optim(lr=0.5, weight_decay=0.1)))
    assert found.keys() - rest.keys() == {name for name in found if "feature_extractor" in name}


def test_no_decay_on_what_beit_spares():
    """Its class token and positions have three dimensions; a text's table of positions is decayed, as in fairseq."""
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    images = d2v.Data2VecVisionConfig(**small, image_size=8, patch_size=4, use_absolute_position_embeddings=True)
    found = by_name(model := d2v.Data2VecVisionModel(images), param_groups(model, Optim(weight_decay=0.1)))
    spared = {name for name, (_, decay) in found.items() if not decay and dict(model.named_parameters())[name].ndim > 1}
    assert spared == {"embeddings.cls_token", "embeddings.position_embeddings"}
    texts = d2v.Data2VecTextModel(d2v.Data2VecTextConfig(**small, vocab_size=20, max_position_embeddings=10))
    assert by_name(texts, param_groups(texts, Optim(weight_decay=0.1)))["embeddings.position_embeddings.weight"][1]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])  # fairseq#4333: without weight decay its layer decay did nothing
def test_layer_decay_by_hand(weight_decay):
    model = Data2VecAudioForCTC(TINY)
    found = by_name(model, param_groups(model, Optim(lr=2.0, layer_decay=0.5, weight_decay=weight_decay)))
    expected = {
        "encoder.layers.2.ffn.fc2.weight": 2.0 * 0.5,
        "encoder.layers.1.attn.q_proj.bias": 2.0 * 0.5**2,
        "encoder.layers.0.attn_norm.weight": 2.0 * 0.5**3,
        "encoder.layer_norm.weight": 2.0 * 0.5**4,
        "encoder.pos_conv_embed.layers.0.conv.weight": 2.0 * 0.5**4,
        "feature_extractor.conv_layers.0.conv.weight": 2.0 * 0.5**4,
        "masked_spec_embed": 2.0 * 0.5**4,
    }
    assert {name: found["data2vec_audio." + name][0] for name in expected} == expected
    assert found["lm_head.weight"][0] == found["lm_head.bias"][0] == 2.0
    assert len({lr for lr, _ in found.values()}) == 5


def test_optimizer_is_adamw_with_these_options():
    model = Data2VecAudioForCTC(TINY)
    optimizer = build_optimizer(model, Optim(lr=0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1))
    weight = model.lm_head.weight
    before, weight.grad = weight.detach().clone(), torch.ones_like(weight)
    optimizer.step()
    # The first step of AdamW: decay by lr * weight_decay, then lr * g / (|g| + eps), since both averages are unbiased.
    torch.testing.assert_close(weight.detach(), before * (1 - 0.5 * 0.1) - 0.5 / (1 + 1e-3))
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_layers_of_the_vision_model_are_beits():
    """BEiT: patches and tokens first, then the blocks; norms and the shared table at the top."""
    config = d2v.Data2VecVisionConfig(
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=32,
        use_absolute_position_embeddings=True,
        use_shared_relative_position_bias=True,
        use_relative_position_bias=True,
    )
    model = d2v.Data2VecVisionForImageClassification(config)
    found = {name: layer_of(name, model.base_model_prefix, 3) for name, _ in model.named_parameters()}
    base = "data2vec_vision."
    assert {name for name, layer in found.items() if layer == 0} == {
        name for name in found if name.startswith(base + "embeddings.")
    }
    assert found[base + "encoder.layers.1.attn.relative_position_bias.relative_position_bias_table"] == 2
    top = {base + "encoder.relative_position_bias.relative_position_bias_table", "classifier.weight", "classifier.bias"}
    top |= {base + "pooler.layernorm.weight", base + "pooler.layernorm.bias"}
    assert {name for name, layer in found.items() if layer == 4} == top


def test_moving_average_by_hand():
    """It begins with the first update, its decay rises; statistics of batch norms are averaged as weights are."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = build_average(model, Optim(ema=0.75))
    for value in (1.0, 5.0, 9.0):
        nn.init.constant_(model[0].weight, value)
        model[1].running_mean.fill_(10 * value)
        average.update_parameters(model)
    expected = (1 * 2 / 11 + 5 * 9 / 11) * 3 / 12 + 9 * 9 / 12
    with averaged(model, average):
        assert (model[0].weight.item(), model[1].running_mean.item()) == pytest.approx((expected, 10 * expected))
    assert (model[0].weight.item(), model[1].running_mean.item()) == (9, 90)
    assert average.module[0].weight.item() == pytest.approx(expected)


def test_the_moving_average_is_torchs():
    """To the last bit, of weights in two precisions and of whole numbers."""
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, dtype=torch.bfloat16))

    def by_torch(averages, values, n):
        get_ema_multi_avg_fn(min(0.3, (1 + int(n)) / (10 + int(n))))(averages, values, n)

    ours, theirs = build_average(model, Optim(ema=0.3)), AveragedModel(model, multi_avg_fn=by_torch, use_buffers=True)
    for _ in range(6):
        for each in model.parameters():
            nn.init.normal_(each)
        model[0:2](torch.randn(4, 3))
        for average in (ours, theirs):
            average.update_parameters(model)
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert ours.state_dict().keys() == theirs.state_dict().keys() and int(ours.module[1].num_batches_tracked) > 0


@pytest.mark.parametrize(("ema", "updates", "least"), [(0.9999, 30, 0.8), (0.5, 200, 0.99)])
def test_a_short_run_does_not_keep_its_initial_weights(ema, updates, least):
    """At 0.9999 from the start, 30 updates left 99.7 % of the average where it began."""
    model = nn.Linear(1, 1)
    average = build_average(model, Optim(ema=ema))
    for value in [0.0] + [1.0] * updates:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert least < average.module.weight.item() <= 1


def test_a_run_that_ends_while_the_rate_rises_says_so():
    for optim, total, noted in ((Optim(warmup=100), 100, 1), (Optim(warmup=100), 101, 0), (Optim(warmup=0.1), 2, 0)):
        job = make_job(Data(), optim=optim)
        note_warm_up(job, total)
        assert len(job.facts) == noted


@pytest.mark.parametrize(
    ("group", "options", "message"),
    [
        (Optim, {"betas": (0.9, 1.5)}, r"optim.betas should be at least 0 and below 1, not \[0.9, 1.5\]"),
        (Optim, {"final_scale": -1}, "optim.final_scale should be at least 0, not -1"),
        (Run, {"seed": -1}, "run.seed should be between 0 and 4294967295, not -1"),
        (Run, {"max_minutes": -1}, "run.max_minutes should be at least 0, not -1"),
        (Lora, {"dropout": 1.0}, "lora.dropout should be below 1, not 1"),
    ],
)
def test_impossible_options_are_named(group, options, message):
    with pytest.raises(InputError, match=message):
        group(**options)


def test_without_a_decay_there_is_no_average():
    model = nn.Linear(1, 1)
    assert build_average(model, Optim()) is None
    with averaged(model, None):
        pass
    with pytest.raises(InputError, match=r"optim.ema should be below 1, such as 0.9999, not 1"):
        Optim(ema=1.0)


def test_a_rate_that_could_never_fall_is_refused():
    with pytest.raises(InputError, match="optim.final_scale should be above 0 with optim.schedule tri_stage"):
        Optim(schedule="tri_stage")
    with pytest.raises(InputError, match="optim.warmup and optim.hold should be at most 1 together, not 1.2"):
        Optim(schedule="tri_stage", final_scale=0.05, warmup=0.2, hold=1.0)
    Optim(schedule="tri_stage", final_scale=0.05, warmup=0.6, hold=0.4)
