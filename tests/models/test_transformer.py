"""The encoder beside the same mathematics by hand, row by row and head by head, in plain torch."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.models import cpu
from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.packing import Packing
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
from d2v.models.transformer import Encoder, attention_by_rows, attention_mask, eager_attention, sdpa_attention
from tests.parity import EXACT, apart, assert_as_close

HEADS, WIDTH = 2, 8
BLOCK = {
    "width": WIDTH,
    "heads": HEADS,
    "hidden": 12,
    "pre_norm": False,
    "activation": "gelu",
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "layer_scale": 0.0,
    "key_bias": True,
    "implementation": "sdpa",
}
SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 12}
LENGTHS = [5, 1, 3, 3, 1, 7]
IMPLEMENTATIONS = ["sdpa", "eager", "sdpa, padded"]  # the last as on a GPU: one call with a mask
SETTINGS = settings(derandomize=True, deadline=None, max_examples=100)


def close(a, b):
    assert apart(a, b) < EXACT


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64)


def packing_of(lengths, padding=0, implementation=""):
    mask = torch.arange(max(lengths) + padding) < torch.tensor(lengths)[:, None]
    packing = Packing.of(mask, *mask.shape)
    return Packing(*mask.shape, mask, packing.indices, None) if "padded" in implementation else packing


def encoder(depth=3, implementation="sdpa", **changes):
    """An encoder in evaluation mode, its norms, biases and scales no longer those of the start."""
    model = Encoder(depth, **BLOCK | changes | {"implementation": implementation.partition(",")[0]})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval().double()


def attention_by_hand(layer, x, bias, head_mask):
    """One row, (n, D)."""
    outputs = []
    for head, part in enumerate(torch.arange(WIDTH).split(WIDTH // HEADS)):
        q, k, v = ((x @ p.weight.T + p.bias)[:, part] for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        scores = q @ k.T / math.sqrt(WIDTH // HEADS) + bias[0, head, : len(x), : len(x)]
        outputs.append(head_mask[head] * (scores.exp() / scores.exp().sum(1, keepdim=True)) @ v)
    return torch.cat(outputs, 1) @ layer.out_proj.weight.T + layer.out_proj.bias


def block_by_hand(block, x, bias, head_mask):
    """One row, (n, D): BERT's order, or BEiT's with `pre_norm`."""

    def norm(x, layer):
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    def feed(x):
        return F.gelu(x @ block.ffn.fc1.weight.T + block.ffn.fc1.bias) @ block.ffn.fc2.weight.T + block.ffn.fc2.bias

    a, b = (1 if scale is None else scale for scale in (block.attn_scale, block.ffn_scale))
    if block.pre_norm:
        x = x + a * attention_by_hand(block.attn, norm(x, block.attn_norm), bias, head_mask)
        return x + b * feed(norm(x, block.ffn_norm))
    x = norm(x + a * attention_by_hand(block.attn, x, bias, head_mask), block.attn_norm)
    return norm(x + b * feed(x), block.ffn_norm)


def by_hand(model, x, lengths, biases=None, head_masks=None):
    """All blocks, (N, D) -> (N, D), each row for itself."""
    biases = [x.new_zeros(1, HEADS, 99, 99)] * len(model.layers) if biases is None else biases
    head_masks = torch.ones(len(model.layers), HEADS) if head_masks is None else head_masks
    rows = list(x.split(lengths))
    for block, bias, head_mask in zip(model.layers, biases, head_masks, strict=True):
        rows = [block_by_hand(block, row, bias, head_mask) for row in rows]
    return torch.cat(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Packing
# ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@SETTINGS
def test_packing(batch, length, data):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch * length, max_size=batch * length)))
    mask = mask.view(batch, length)
    packing = Packing.of(mask.long() * 7, batch, length)  # any number but 0 is real
    values = torch.arange(1.0, batch * length * 3 + 1).view(batch, length, 3)
    together = packing.pack(values)
    assert torch.equal(together, values[mask])  # row after row
    assert torch.equal(packing.unpack(together), values * mask[:, :, None])
    assert torch.equal(packing.pack(packing.unpack(together)), together)
    assert torch.equal(packing.pack(mask), torch.ones(len(together), dtype=torch.bool))  # without further dimensions
    rows = torch.randn(batch, 2)
    assert torch.equal(packing.spread(rows), rows[:, None].expand(-1, length, -1)[mask])
    assert packing.lengths == tuple(mask.sum(1).tolist()) and sum(rows * n for rows, n in packing.runs) == mask.sum()


@given(st.lists(st.integers(1, 3), min_size=1, max_size=9))
@SETTINGS
def test_runs_are_neighbours_of_one_length(lengths):
    runs = packing_of(lengths).runs
    assert [length for rows, length in runs for _ in range(rows)] == lengths
    assert all(a[1] != b[1] for a, b in itertools.pairwise(runs))


def test_without_padding_nothing_is_gathered():
    for packing in (Packing.of(None, 2, 3), Packing.of(torch.ones(2, 3), 2, 3)):
        assert packing.mask is None and packing.indices is None and packing.runs == [(2, 3)]
        x = torch.randn(2, 3, 4)
        assert packing.pack(x).data_ptr() == x.data_ptr() and torch.equal(packing.unpack(packing.pack(x)), x)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("pre_norm", "layer_scale"), [(False, 0.0), (True, 0.5), (True, 0.0)])
def test_encoder_by_hand(implementation, biased, pre_norm, layer_scale):
    model = encoder(implementation=implementation, pre_norm=pre_norm, layer_scale=layer_scale)
    x = randn(sum(LENGTHS), WIDTH)
    biases = [randn(1, HEADS, 9, 9) for _ in model.layers] if biased else None  # 7, and 2 of padding
    packing = packing_of(LENGTHS, 2, implementation)
    found, states, attentions = model(x, packing, biases=biases, output_hidden_states=True)
    close(found, by_hand(model, x, LENGTHS, biases))
    assert attentions is None and len(states) == 4
    assert torch.equal(states[0], packing.unpack(x)) and torch.equal(states[-1], packing.unpack(found))
    assert not states[2][~packing.mask].any()


def test_layer_scale_begins_where_it_is_told():
    block = Encoder(1, **BLOCK | {"layer_scale": 0.125}).layers[0]
    assert torch.equal(block.attn_scale.data, torch.full((WIDTH,), 0.125)) and block.ffn_scale.shape == (WIDTH,)
    assert encoder(1).layers[0].attn_scale is None


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.booleans(), st.booleans())
@SETTINGS
def test_every_attention_is_the_softmax_by_hand(lengths, biased, causal):
    q, k, v = randn(3, sum(lengths), HEADS, 4).unbind()
    packing = packing_of(lengths, 1)
    bias = randn(1, HEADS, packing.length, packing.length) if biased else None
    dense = [packing.unpack(x).transpose(1, 2) for x in (q, k, v)]  # (B, H, T, K)
    seen = packing.mask[:, None, None].expand(-1, -1, packing.length, -1)
    seen = seen.tril() if causal else seen
    scores = dense[0] @ dense[1].mT / 2 + (bias if biased else 0)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)  # (B, H, T, T)
    expected = packing.pack((weights @ dense[2]).transpose(1, 2))
    mask = attention_mask(packing, packing, causal, q.device)
    for attend in (eager_attention, sdpa_attention):
        found, found_weights = attend(*dense, mask, bias, 0.0)
        close(packing.pack(found.transpose(1, 2)), expected)
        if found_weights is not None:
            close(packing.pack(found_weights.transpose(1, 2)), packing.pack(weights.transpose(1, 2)))
    if not (biased and causal):  # no model has both
        close(attention_by_rows(q, k, v, packing, bias, 0.0, causal), expected)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(HEADS,), (3, HEADS)])
def test_head_mask_by_hand(implementation, shape):
    model, x, head_mask = encoder(implementation=implementation), randn(sum(LENGTHS), WIDTH), torch.rand(shape)
    head_mask[..., 1] = 0
    packing = packing_of(LENGTHS, implementation=implementation)
    found, _, _ = model(x, packing, head_mask=head_mask)
    close(found, by_hand(model, x, LENGTHS, head_masks=head_mask.expand(3, HEADS)))
    _, _, weights = model(x, packing, head_mask=head_mask, output_attentions=True)
    for layer, factors in zip(weights, head_mask.expand(3, HEADS), strict=True):  # (B, H, T, T)
        sums = layer.sum(-1).transpose(1, 2)[packing.mask]  # (N, H): over keys, at real queries
        close(sums, factors.double().expand(len(x), HEADS))
        assert not layer.transpose(1, 3)[~packing.mask].any()  # no weight on padding


def test_gradients_agree():
    x, target = randn(sum(LENGTHS), WIDTH), randn(sum(LENGTHS), WIDTH)
    model = encoder()
    expected = torch.autograd.grad((by_hand(model, x, LENGTHS) * target).sum(), list(model.parameters()))
    for implementation in IMPLEMENTATIONS:
        for layer in model.layers:
            layer.attn.implementation = implementation.partition(",")[0]
        found, _, _ = model(x, packing_of(LENGTHS, 1, implementation))
        for a, b in zip(torch.autograd.grad((found * target).sum(), list(model.parameters())), expected, strict=True):
            close(a, b)


def gradients(layers, x, seed, joined, dtype=torch.bfloat16):
    """Outputs of layers of one input, and the gradients of all that has one."""
    for parameter in layers.parameters():
        parameter.grad = None
    x = x.detach().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float64):
        outputs = cpu.linears(x, *layers) if joined else tuple(layer(x) for layer in layers)
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(y.shape, generator=generator) for y in outputs]
    sum((y.to(x.dtype) * w.to(x.dtype)).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    found = {name: parameter.grad for name, parameter in layers.named_parameters() if parameter.grad is not None}
    return list(outputs), found | ({"x": x.grad} if x.grad is not None else {})


@pytest.mark.parametrize("positions", [1, 64])
@pytest.mark.parametrize("of_input", [True, False])
@pytest.mark.parametrize("frozen", [(), ("1.weight",), ("0.weight", "0.bias", "1.weight", "2.weight")])
def test_joined_layers_are_those_layers(positions, of_input, frozen):
    """In bf16 under autocast, beside float64; one has no bias, and some are frozen."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(WIDTH, 8), torch.nn.Linear(WIDTH, 4, bias=False)])
    layers.append(torch.nn.Linear(WIDTH, 12))
    for name, parameter in layers.named_parameters():
        parameter.requires_grad = name not in frozen
    x = torch.randn(positions, WIDTH, requires_grad=of_input)
    outputs, found = gradients(layers, x, 1, joined=True)
    apart_outputs, expected = gradients(layers, x, 1, joined=False)
    exact_outputs, exact = gradients(layers.double(), x.double(), 1, joined=False, dtype=torch.float64)
    assert [y.dtype for y in outputs] == [torch.bfloat16] * 3
    assert_as_close(outputs, apart_outputs, exact_outputs, torch.bfloat16)
    assert found.keys() == expected.keys() == exact.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32 and gradient.is_contiguous(), name
        assert_as_close(gradient, expected[name], exact[name], torch.bfloat16)


def test_layers_are_joined_where_that_pays(monkeypatch):
    """Plain layers with weights of fp32 that compute in 16 bits; others are called, so that what they add counts."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    monkeypatch.setattr(cpu, "joined_casts", None)  # fails when called
    x, plain = torch.randn(3, WIDTH), torch.nn.Linear(WIDTH, 4)
    adapted = Adapted(WIDTH, 4)
    assert torch.equal(cpu.linears(x, plain, plain)[1], plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cpu.linears(x, plain, adapted)[1], adapted(x))
        low = torch.nn.Linear(WIDTH, 4).bfloat16()
        assert torch.equal(cpu.linears(x, low)[0], low(x))
        with pytest.raises(TypeError):
            cpu.linears(x, plain, plain)


@pytest.mark.parametrize("change", ["prune", "weight_norm", "hook"])
def test_layers_with_hooks_are_called(change):
    """Which give them other weights in each call, or want to see their outputs."""
    layers, seen = [torch.nn.Linear(WIDTH, 4) for _ in range(2)], []
    if change == "prune":
        torch.nn.utils.prune.l1_unstructured(layers[0], "weight", 0.5)
    elif change == "weight_norm":
        torch.nn.utils.weight_norm(layers[0])
    else:
        layers[0].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        for parameter in layers[0].parameters():
            parameter.mul_(2)
    x = torch.randn(3, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        found = cpu.linears(x, *layers)
        assert len(seen) == (change == "hook")
        assert all(torch.equal(a, layer(x)) for a, layer in zip(found, layers, strict=True))


def test_a_second_derivative_is_refused():
    """It would lack what goes through the casts."""
    layers, x = [torch.nn.Linear(WIDTH, 4) for _ in range(2)], torch.randn(3, WIDTH, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.cat(cpu.linears(x, *layers)).float().square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


class Plain(torch.nn.Module):
    """A model that returns a tensor, as tracing needs it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).last_hidden_state


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["audio", "text"])
def test_models_in_bf16_are_traced_and_differentiated_by_torch_func(kind, tmp_path):
    if kind == "audio":
        sizes = {
            "conv_dim": (8,) * 7,
            "num_conv_pos_embedding_groups": 2,
            "num_conv_pos_embeddings": 1,
            "conv_pos_kernel_size": 3,
            "mask_time_prob": 0.0,
        }
        model, given = Data2VecAudioModel(Data2VecAudioConfig(**SMALL, **sizes)), torch.randn(2, 800)
    else:
        model, given = Data2VecTextModel(Data2VecTextConfig(vocab_size=11, **SMALL)), torch.randint(3, 11, (2, 5))
    model.eval()

    def mean(weights):
        return torch.func.functional_call(model, weights, (given,)).last_hidden_state.float().square().mean()

    with torch.autocast("cpu", torch.bfloat16):
        expected = model(given).last_hidden_state
        mean({}).backward()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.func.grad(mean)({name: value.detach() for name, value in model.named_parameters()})
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), torch.no_grad():
        traced = torch.jit.trace(Plain(model), (given,), check_trace=False)
        torch.jit.save(traced, tmp_path / "model.pt")
        output = torch.jit.load(tmp_path / "model.pt")(given)
    assert apart(output, expected) < 4 * torch.finfo(torch.bfloat16).eps
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert apart(found[name], parameter.grad) < 4 * torch.finfo(torch.bfloat16).eps, name


def test_kept_casts_are_a_threads_own():
    layers = (torch.nn.Linear(WIDTH, 4), torch.nn.Linear(WIDTH, 4))

    def cast():
        return cpu.joined_casts(layers, torch.bfloat16)[0]

    with cpu.keeping_joined_casts():
        here = cast()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(cast).result() is not here
        assert cast() is here


def test_joined_weights_are_cast_once_where_they_are_kept():
    """And again when the context has ended, so that changed weights are seen."""
    layers, x = (torch.nn.Linear(WIDTH, 4), torch.nn.Linear(WIDTH, 4)), torch.randn(3, WIDTH)

    def outputs():
        with torch.autocast("cpu", torch.bfloat16):
            return torch.cat(cpu.linears(x, *layers))

    with cpu.keeping_joined_casts():
        casts = cpu.joined_casts(layers, torch.bfloat16)
        first = outputs()
        assert all(a is b for a, b in zip(casts, cpu.joined_casts(layers, torch.bfloat16), strict=True))
    with torch.no_grad():
        layers[1].weight.zero_()
        layers[1].bias.fill_(2)
    assert torch.equal(outputs()[:3], first[:3]) and (outputs()[3:] == 2).all()
