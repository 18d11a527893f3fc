"""What is random in the encoder's training, and gradient checkpointing, which must not disturb it."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from d2v.models import cpu
from d2v.models.cpu import drop
from d2v.models.packing import Packing
from d2v.models.transformer import Encoder, attention_by_rows
from tests.parity import EXACT, apart, assert_as_close

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


@given(st.floats(0.01, 0.99), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_dropout_drops_its_share_and_keeps_the_mean(p, seed, dtype):
    torch.manual_seed(seed)
    x = torch.ones(173, 231, dtype=dtype, requires_grad=True)  # an odd number of elements
    out = drop(x, p)
    out.sum().backward()
    kept = out != 0
    assert out.shape == x.shape and out.dtype == dtype and torch.equal(x.grad, out)
    assert torch.allclose(out[kept].double(), torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-2)
    assert abs(kept.double().mean() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16
    torch.manual_seed(seed)
    assert torch.equal(out, drop(x, p))


def test_dropout_treats_all_elements_alike():
    # Four elements share a word of 64 random bits: none of the four is kept more often, or together with another.
    kept = (drop(torch.ones(400_000), 0.25) != 0).view(-1, 4).double()
    assert (kept.mean(0) - 0.75).abs().max() < 0.01
    assert (torch.corrcoef(kept.T) - torch.eye(4)).abs().max() < 0.02


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (1.0, True)])
def test_dropout_at_its_ends(p, training):
    x = torch.randn(5, 3)
    assert torch.equal(drop(x, p, training), x * 0 if training and p else x)
    assert drop(torch.ones(0, 3), 0.5).shape == (0, 3) and drop(torch.ones(()), 0.5) in (0, 2)


@pytest.mark.parametrize(
    ("dtype", "length", "dropout", "avx512", "grad", "kernel"),
    [
        (torch.float32, 8, 0.0, False, False, True),
        (torch.float32, 8, 0.1, False, True, False),
        (torch.bfloat16, 8, 0.0, False, False, False),
        (torch.bfloat16, 1025, 0.0, False, False, True),
        (torch.bfloat16, 8, 0.0, True, False, True),
        (torch.bfloat16, 8, 0.0, True, True, False),
    ],
)
def test_attention_is_chosen_by_the_table(monkeypatch, dtype, length, dropout, avx512, grad, kernel):
    """Torch's kernel, or materialised weights: see `LONGEST_MATERIALISED`."""
    calls, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(cpu, "has_bf16_kernels", lambda: avx512)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **rest: calls.append(1) or attention(*args, **rest)
    )
    q = torch.randn(1, 1, length, 4, dtype=dtype)
    with torch.set_grad_enabled(grad):
        cpu.unmasked_attention(q, q, q, None, dropout, False)
    assert bool(calls) == kernel


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_way_to_attend_means_the_same(causal, dropout, dtype):
    # Rows of one length and of several, short, long and very long: fp32, bf16, torch's kernel or materialised.
    for lengths in ((5, 5), (7, 3, 3), (130, 140), (1030, 2)):
        packing = Packing.of(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], len(lengths), max(lengths))
        q, k = (torch.randn(sum(lengths), 2, 8, dtype=dtype) for _ in range(2))
        v = torch.ones(sum(lengths), 2, 8, dtype=dtype)  # so that the context is the sum of the weights that are left
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attention_by_rows(q, k, v, packing, None, dropout, causal)
        assert out.dtype == dtype and torch.equal(out[..., 0], out[..., 1])
        assert abs(out.double().mean() - 1) < (0.01 if dropout == 0 else 0.2)
        if dropout == 0:
            v = torch.randn_like(v)
            out = attention_by_rows(q, k, v, packing, None, dropout, causal)
            for q_row, k_row, v_row, found in zip(*(x.split(lengths) for x in (q, k, v, out)), strict=True):
                qkv = [x.transpose(0, 1) for x in (q_row, k_row, v_row)]
                expected, wanted = (
                    F.scaled_dot_product_attention(*(x.to(kind) for x in qkv), is_causal=causal).transpose(0, 1)
                    for kind in (dtype, torch.float64)
                )
                if dtype == torch.float64:
                    assert apart(found, wanted) < EXACT
                else:
                    assert_as_close(found, expected, wanted, dtype)
