"""What is random in the encoder's training, and gradient checkpointing, which must not disturb it."""

import pytest
import torch

from d2v.models.packing import Packing
from d2v.models.transformer import Encoder

BLOCK = {
    "width": 8,
    "heads": 2,
    "hidden": 12,
    "pre_norm": True,
    "activation": "gelu",
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layer_scale": 0.0,
    "key_bias": True,
    "implementation": "sdpa",
}
ALL = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "drop_path": 0.5, "layerdrop": 0.3}
MASK = torch.arange(4) < torch.tensor([3, 1, 4])[:, None]
PACKING = Packing.of(MASK, 3, 4)


def run(model, x, seed=0, **options):
    torch.manual_seed(seed)
    return model(x, PACKING, **options)


def test_evaluation_is_deterministic():
    x, model = torch.randn(8, 8), Encoder(3, **BLOCK | ALL).eval()
    expected = Encoder(3, **BLOCK)
    expected.load_state_dict(model.state_dict())
    for seed in range(3):
        assert torch.equal(run(model, x, seed)[0], run(expected, x)[0])
    model.train()
    assert not torch.equal(run(model, x, 0)[0], run(model, x, 1)[0])
    assert torch.equal(run(model, x, 1)[0], run(model, x, 1)[0])


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_each_kind_acts_in_training_alone(name, implementation):
    x, model = torch.randn(8, 8), Encoder(3, **BLOCK | {"implementation": implementation, name: 0.5}).train()
    outputs = [run(model, x, seed)[0] for seed in range(8)]
    assert any(not torch.equal(outputs[0], other) for other in outputs)
    model.eval()
    assert torch.equal(run(model, x, 0)[0], run(model, x, 1)[0])


def test_layerdrop_skips_whole_layers_at_its_rate():
    x, model, kept = torch.randn(8, 8), Encoder(5, layerdrop=0.3, **BLOCK).train(), torch.zeros(5)
    for seed in range(400):
        out, states, attentions = run(model, x, seed, output_hidden_states=True, output_attentions=True)
        assert len(states) == 6 and len(attentions) == 5
        for i, weights in enumerate(attentions):
            assert (weights is None) == torch.equal(states[i], states[i + 1])
            kept[i] += weights is not None
        assert torch.equal(states[-1], PACKING.unpack(out))
    assert kept.div(400).sub(0.7).abs().max() < 0.1  # 4 standard errors of sqrt(0.3 * 0.7 / 400)


def test_drop_path_grows_from_first_to_last():
    assert [layer.drop_path for layer in Encoder(5, drop_path=0.4, **BLOCK).layers] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )
    assert Encoder(1, drop_path=0.4, **BLOCK).layers[0].drop_path == 0


@pytest.mark.parametrize("packing", [PACKING, Packing.of(None, 2, 4)])
def test_drop_path_drops_branches_of_whole_rows(packing):
    block = Encoder(2, drop_path=0.25, **BLOCK).layers[1].train()
    lengths, kept = list(packing.lengths), []
    branch = torch.rand(sum(lengths), 8) + 1
    for _ in range(600):
        for row, full in zip(block.branch(branch, None, packing).split(lengths), branch.split(lengths), strict=True):
            assert not row.any() or torch.allclose(row, full / 0.75)
            kept.append(bool(row.any()))
    assert sum(kept) / len(kept) == pytest.approx(0.75, abs=0.05)  # 4 standard errors of sqrt(0.25 * 0.75 / 1200)
    assert torch.equal(block.eval().branch(branch, torch.full((8,), 2.0), packing), 2 * branch)


def test_drop_path_leaves_the_expectation():
    block, x = Encoder(2, drop_path=0.5, **BLOCK).layers[1].train(), torch.ones(8, 8)
    mean = torch.stack([block.branch(x, None, PACKING) for _ in range(4000)]).mean(0)
    assert mean.sub(1).abs().max() < 0.08  # 5 standard errors of 1 / sqrt(4000)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("noise", [{}, ALL])
def test_gradient_checkpointing_changes_nothing(implementation, noise):
    model = Encoder(3, **BLOCK | {"implementation": implementation} | noise).train()
    head_mask, biases = torch.rand(3, 2), [torch.randn(1, 2, 4, 4)] * 3
    results = []
    for checkpointing in (False, True):
        model.gradient_checkpointing, x = checkpointing, torch.linspace(-1, 1, 64).view(8, 8).requires_grad_()
        out, states, _ = run(model, x, 5, biases=biases, head_mask=head_mask, output_hidden_states=True)
        # A layer that LayerDrop skipped has no gradient.
        gradients = torch.autograd.grad(out.square().sum(), [x, *model.parameters()], allow_unused=True)
        results.append([out, *states, *gradients])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_gradient_checkpointing_keeps_less():
    model, x, kept = Encoder(4, **BLOCK).train(), torch.randn(8, 8, requires_grad=True), []
    for checkpointing in (False, True):
        model.gradient_checkpointing, saved = checkpointing, []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):  # noqa: B023
            run(model, x)
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 3
