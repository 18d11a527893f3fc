"""The text models beside transformers': same weights, same numbers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import d2v
from d2v.errors import InputError
from d2v.hub import rename
from d2v.models.generation import choose
from d2v.pretrained import load_weights
from tests.parity import (
    EXACT,
    apart,
    assert_as_close,
    exact,
    flat,
    opens_both_ways,
    pair,
    same_loss_in_float64,
    same_outputs,
    same_updates,
    spread,
)

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DECODER = {"is_decoder": True, "use_cache": False}
IDS = torch.tensor([[0, 7, 8, 9, 10, 11, 2], [0, 12, 13, 2, 1, 1, 1], [0, 60, 59, 58, 57, 2, 1]])
MASK = (IDS != 1).long()
HEADS = {
    "Data2VecTextModel": ({}, {}),
    "Data2VecTextForMaskedLM": ({}, {"labels": IDS.masked_fill((torch.arange(7) % 3 != 1) | (IDS == 1), -100)}),
    "Data2VecTextForCausalLM": (DECODER, {"labels": IDS.masked_fill(IDS == 1, -100)}),
    "Data2VecTextForSequenceClassification": ({}, {"labels": torch.tensor([2, 0, 1])}),
    "Data2VecTextForMultipleChoice": ({}, {"labels": torch.tensor([1])}),
    "Data2VecTextForTokenClassification": ({}, {"labels": (IDS % 3).masked_fill(IDS < 3, -100)}),
    "Data2VecTextForQuestionAnswering": (
        {"num_labels": 2},
        {"start_positions": torch.tensor([1, 2, 99]), "end_positions": torch.tensor([3, 2, 0])},
    ),
}


def inputs_of(name: str, padded: bool = True) -> dict[str, torch.Tensor]:
    """Token numbers and mask as the head takes them; without padding, rows of one length."""
    ids = IDS if padded else IDS.masked_fill(IDS == 1, 33)
    inputs = {"input_ids": ids, "token_type_ids": (torch.arange(7) > 3).long().expand(3, 7)}
    inputs |= {"attention_mask": MASK} if padded else {}
    return {key: value[None] for key, value in inputs.items()} if "MultipleChoice" in name else inputs


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HEADS)
def test_without_padding_everything_is_equal(name, implementation):
    changes, labels = HEADS[name]
    theirs, ours = pair(name, implementation, **TINY | changes)
    options = {"output_hidden_states": True, "output_attentions": implementation == "eager"}
    inputs = inputs_of(name, padded=False) | labels | options

    def objective(output):
        return output.loss if labels else spread(output) + output.pooler_output.sum()

    found, _, _ = same_outputs(theirs, ours, objective, **inputs)
    assert len(flat(found.values())) > 4


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HEADS)
def test_padded_batches_are_equal_at_real_tokens(name, implementation):
    changes, labels = HEADS[name]
    if "Question" in name:  # their softmax counts the padding
        labels = {}
    theirs, ours = pair(name, implementation, **TINY | changes)
    inputs = inputs_of(name) | labels | {"output_hidden_states": True}
    outputs = [model(**inputs) for model in (ours, theirs, exact(theirs))]
    keys = [key for key in outputs[1] if key not in ("cache", "past_key_values")]
    assert keys == [key for key in outputs[0] if key != "past_key_values"]
    for key in keys:
        real = MASK.bool() if flat(outputs[0][key])[0].shape[:2] == IDS.shape else ...
        assert_as_close(*([x[real] for x in flat(output[key])] for output in outputs))
    assert not any(state[~MASK.bool()].any() for state in outputs[0].hidden_states if state.shape[:2] == IDS.shape)


@pytest.mark.parametrize("name", HEADS)
def test_a_text_gives_the_same_alone(name):
    ours = exact(pair(name, "sdpa", **TINY | HEADS[name][0])[1])
    if "MultipleChoice" in name:
        alone = torch.cat([ours(IDS[None, None, i, :length]).logits for i, length in enumerate(MASK.sum(1))], dim=1)
        assert apart(ours(IDS[None], MASK[None]).logits, alone) < EXACT
        return
    together = ours(IDS, MASK)[0]
    for i, length in enumerate(MASK.sum(1)):
        alone = ours(IDS[i : i + 1, :length])[0][0]
        assert apart(together[i] if "Sequence" in name else together[i, :length], alone) < EXACT


def test_loss_does_not_depend_on_padding():
    for name, (changes, labels) in HEADS.items():
        if labels and "MultipleChoice" not in name:
            ours = exact(pair(name, "sdpa", **TINY | changes)[1])
            wide = {key: F.pad(x, (0, 4), value=-100) if x.ndim == 2 else x for key, x in labels.items()}
            found = ours(F.pad(IDS, (0, 4), value=1), F.pad(MASK, (0, 4)), **wide).loss
            assert apart(found, ours(IDS, MASK, **labels).loss) < EXACT


@pytest.mark.parametrize("name", HEADS)
def test_checkpoints_go_both_ways(name, tmp_path):
    theirs, ours = pair(name, **TINY | HEADS[name][0])
    opens_both_ways(theirs, ours, tmp_path, **inputs_of(name, padded=False))
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    assert {rename(key, ours.renames) for key in ours.state_dict()} == set(theirs.state_dict()) - tied


def test_an_untied_head_has_its_own_decoder(tmp_path):
    theirs, ours = pair("Data2VecTextForMaskedLM", **TINY, tie_word_embeddings=False)
    theirs.lm_head.decoder.bias.data.normal_()
    ours.lm_head.decoder.bias.data.copy_(theirs.lm_head.decoder.bias)
    assert_as_close(*(model(IDS, MASK).logits[0] for model in (ours, theirs, exact(theirs))))
    opens_both_ways(theirs, ours, tmp_path, input_ids=IDS[:1])


def test_weights_as_older_versions_saved_them(tmp_path):
    """A pickle with the tied weights twice and buffers beside them."""
    theirs, ours = pair("Data2VecTextForMaskedLM", **TINY)
    ours.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    extra = {"data2vec_text.embeddings.position_ids": torch.arange(40)[None]}
    torch.save(theirs.state_dict() | extra, tmp_path / "pytorch_model.bin")
    loaded = d2v.Data2VecTextForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(loaded(IDS, MASK).logits, ours(IDS, MASK).logits)


@pytest.mark.parametrize("name", ["Data2VecTextForMaskedLM", "Data2VecTextModel"])
def test_tied_weights_under_their_other_name_alone(name, tmp_path):
    """Which of two names of one weight is kept depends on the tool that wrote the file."""
    theirs, ours = pair("Data2VecTextForMaskedLM", **TINY)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.decoder.weight"] = weights.pop("data2vec_text.embeddings.word_embeddings.weight")
    weights["lm_head.decoder.bias"] = weights.pop("lm_head.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = getattr(d2v, name)(ours.config)
    report = load_weights(loaded, tmp_path)
    assert not [key for key in report.missing if "pooler" not in key]
    table = ours.data2vec_text.embeddings.word_embeddings.weight
    assert torch.equal(loaded.base_model.embeddings.word_embeddings.weight, table)
    if "MaskedLM" in name:
        assert not report.unexpected and torch.equal(loaded.lm_head.bias, ours.lm_head.bias)


@pytest.mark.parametrize("name", [name for name, (_, labels) in HEADS.items() if labels])
def test_fifty_updates_follow_transformers(name):
    changes, labels = HEADS[name]
    theirs, ours = pair(name, **TINY | STILL | changes)
    inputs = inputs_of(name, padded=False)
    batches = [inputs | labels | {"input_ids": inputs["input_ids"].roll(i, -1)} for i in range(5)]
    same_updates(theirs, ours, batches)


def test_losses_of_each_problem_type():
    targets = {
        "regression": torch.tensor([[0.5, 1.0, -2.0]] * 3),
        "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0]] * 3),
        "single_label_classification": torch.tensor([2, 0, 1]),
    }
    for kind, labels in targets.items():
        theirs, ours = pair("Data2VecTextForSequenceClassification", **TINY | {"problem_type": kind})
        same_loss_in_float64(theirs, ours, input_ids=IDS, attention_mask=MASK, labels=labels)
    theirs, ours = pair("Data2VecTextForSequenceClassification", **TINY | {"num_labels": 1})
    labels = torch.tensor([0.5, 3.0, -1.0])
    same_loss_in_float64(theirs, ours, input_ids=IDS, attention_mask=MASK, labels=labels)


def test_logits_where_they_are_wanted():
    for name in ("Data2VecTextForMaskedLM", "Data2VecTextForCausalLM"):
        ours = exact(pair(name, **TINY | HEADS[name][0])[1])
        at = (torch.rand(IDS.shape) < 0.5) & MASK.bool()
        assert apart(ours(IDS, MASK, logits_at=at).logits, ours(IDS, MASK).logits[at]) < EXACT


def test_embeddings_in_place_of_numbers():
    theirs, ours = pair("Data2VecTextModel", **TINY)
    same_outputs(theirs, ours, inputs_embeds=torch.randn(2, 5, 32))
    same_outputs(theirs, ours, input_ids=IDS[:, :5], position_ids=torch.tensor([[3, 9, 4, 5, 39]]))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_head_mask_scales_a_heads_output(implementation):
    """By hand: the columns of the output projection that a head feeds are scaled instead."""
    ours = exact(pair("Data2VecTextModel", implementation, **TINY)[1])
    scaled, head_mask = copy.deepcopy(ours), torch.rand(3, 4)
    for layer, factors in zip(scaled.encoder.layers, head_mask, strict=True):
        layer.attn.out_proj.weight.data *= factors.repeat_interleave(8)
    assert apart(ours(IDS, MASK, head_mask=head_mask)[0], scaled(IDS, MASK)[0]) < EXACT


def test_gradient_checkpointing_changes_nothing():
    _, ours = pair("Data2VecTextForMaskedLM", "sdpa", **TINY)
    labels, found = HEADS["Data2VecTextForMaskedLM"][1], []
    for enabled in (False, True):
        ours.zero_grad()
        ours.gradient_checkpointing_enable(enabled)
        ours(IDS, MASK, **labels).loss.backward()
        found.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradient_checkpointing_leaves_a_cache_alone():
    """It would be given the same positions again in the backward pass."""
    _, ours = pair("Data2VecTextForCausalLM", "sdpa", **TINY, is_decoder=True)
    found = []
    for enabled in (False, True):
        ours.zero_grad()
        ours.gradient_checkpointing_enable(enabled)
        ours(IDS, labels=IDS, use_cache=True).loss.backward()
        found.append([p.grad.clone() for p in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_frozen_base_model_computes_as_in_evaluation():
    _, ours = pair("Data2VecTextForTokenClassification", "sdpa", **TINY | {"classifier_dropout": 0.0})
    expected = ours(IDS, MASK).logits
    assert apart(ours.train()(IDS, MASK).logits, expected) > 1e-3  # dropout
    ours.freeze_base_model()
    found = ours.train()(IDS, MASK)
    assert torch.equal(found.logits, expected) and ours.training
    found.logits.sum().backward()
    assert {name for name, p in ours.named_parameters() if p.grad is not None} == {
        "classifier.weight",
        "classifier.bias",
    }
    plain = d2v.Data2VecTextModel(ours.config)
    plain.freeze_base_model()
    assert not plain.train().embeddings.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    theirs, ours = pair("Data2VecTextForTokenClassification", "sdpa", **TINY)
    ours.save_pretrained(tmp_path)
    half, wanted = type(ours).from_pretrained(tmp_path, torch_dtype=dtype), exact(theirs)(IDS, MASK).logits
    real = MASK.bool()
    with torch.autocast("cpu", dtype):
        assert_as_close(*(x[real] for x in (ours(IDS, MASK).logits, theirs(IDS, MASK).logits, wanted)), dtype)
    logits, expected = half(IDS, MASK).logits, theirs.to(dtype)(IDS, MASK).logits
    assert logits.dtype == dtype
    assert_as_close(*(x[real] for x in (logits, expected, wanted)), dtype)


def test_more_tokens():
    _, ours = pair("Data2VecTextForMaskedLM", **TINY)
    before = ours(IDS, MASK).logits
    ours.resize_token_embeddings(70)
    after = ours(IDS.masked_fill(IDS == 60, 69), MASK).logits
    assert after.shape[2] == ours.config.vocab_size == 70 and torch.equal(after[0, :, :61], before[0])
    ours.resize_token_embeddings(61)
    assert torch.equal(ours(IDS, MASK).logits, before)
    with pytest.raises(ValueError, match="pad token"):
        ours.resize_token_embeddings(1)


# ---------------------------------------------------------------------------------------------------------------------
# Decoders
# ---------------------------------------------------------------------------------------------------------------------


def test_a_decoder_sees_nothing_of_what_follows():
    for implementation in ("eager", "sdpa"):
        _, ours = pair("Data2VecTextForCausalLM", implementation, **TINY | DECODER)
        changed = IDS.clone()
        changed[0, 4:] = 20
        assert torch.equal(ours(changed, MASK).logits[0, :4], ours(IDS, MASK).logits[0, :4])
        assert not torch.equal(ours(changed, MASK).logits[0, 4:], ours(IDS, MASK).logits[0, 4:])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention(implementation):
    changes = DECODER | {"add_cross_attention": True}
    theirs, ours = pair("Data2VecTextForCausalLM", implementation, **TINY | changes)
    memory = {"encoder_hidden_states": torch.randn(3, 9, 32)}
    memory["encoder_attention_mask"] = (torch.arange(9) < torch.tensor([[9], [4], [1]])).long()
    ids = IDS.masked_fill(IDS == 1, 33)
    options = {"labels": ids, "output_attentions": implementation == "eager"}
    same_outputs(theirs, ours, lambda output: output.loss, input_ids=ids, **memory, **options)
    with pytest.raises(ValueError, match="add_cross_attention"):
        pair("Data2VecTextForCausalLM", **TINY | DECODER)[1](ids, **memory)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("cross", [False, True])
def test_cached_tokens_equal_recomputed_ones(implementation, cross):
    changes = {"is_decoder": True, "add_cross_attention": cross}
    ours = exact(pair("Data2VecTextForCausalLM", implementation, **TINY | changes)[1])
    memory = {"encoder_hidden_states": torch.randn(3, 5, 32, dtype=torch.float64)} if cross else {}
    ids = torch.randint(3, 61, (3, 9))
    expected = ours(ids, use_cache=False, **memory)
    assert expected.past_key_values is None
    cache, found = None, []
    for piece in ids.split([3, 1, 2, 1, 1, 1], dim=1):
        output = ours(piece, past_key_values=cache, **memory)
        cache = output.past_key_values
        found.append(output.logits)
    assert apart(torch.cat(found, dim=1), expected.logits) < EXACT


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_generation_is_greedy_recomputation_and_transformers(implementation, side):
    theirs, ours = pair("Data2VecTextForCausalLM", implementation, **TINY | {"is_decoder": True})
    # Their `generate` numbers positions from 0, and so differs from their own `forward`, which counts from pad + 1.
    theirs.data2vec_text.register_forward_pre_hook(
        lambda m, args, kw: (args, kw | {"position_ids": None}), with_kwargs=True
    )
    prompts = [torch.tensor([0, 7, 8, 9]), torch.tensor([0, 12]), torch.tensor([0, 60, 59])]
    alone = []
    for prompt in prompts:
        ids = prompt[None]
        for _ in range(8):
            ids = torch.cat((ids, ours(ids, use_cache=False).logits[:, -1:].argmax(-1)), dim=1)
        wanted = theirs.generate(prompt[None], max_new_tokens=8, do_sample=False, use_cache=False, eos_token_id=None)
        assert torch.equal(ids, wanted)
        alone.append(ids[0, len(prompt) :])
    batch = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=1, padding_side=side)
    for use_cache in (True, False):
        options = {"max_new_tokens": 8, "eos_token_id": [], "use_cache": use_cache}
        assert torch.equal(ours.generate(batch, (batch != 1).long(), **options)[:, 4:], torch.stack(alone))


def test_generation_stops():
    _, ours = pair("Data2VecTextForCausalLM", **TINY | {"is_decoder": True})
    free = ours.generate(IDS[:1, :3], max_new_tokens=6, eos_token_id=[])[0, 3:].tolist()
    stop = free[2]
    ended = ours.generate(IDS[:1, :3].expand(2, 3), max_new_tokens=6, eos_token_id=stop)
    assert ended[0, 3:].tolist() == free[: free.index(stop) + 1] and torch.equal(ended[0], ended[1])
    with pytest.raises(ValueError, match="positions for 38"):
        ours.generate(IDS[:1, :3], max_new_tokens=37)
    assert ours.generate(IDS[:1, :3], max_new_tokens=36, eos_token_id=[]).shape == (1, 39)
    with pytest.raises(ValueError, match="is_decoder"):
        pair("Data2VecTextForCausalLM", **TINY)[1].generate(IDS)


def test_sampling():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, 4)

    def shares(**changes):
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "generator": None} | changes
        return torch.bincount(choose(logits, **options), minlength=4) / 4000

    def expected(kept, temperature=1.0):
        return F.pad((logits[0, :kept] / temperature).softmax(0), (0, 4 - kept))

    assert apart(shares(), expected(4)) < 0.03
    assert apart(shares(temperature=0.5), expected(4, 0.5)) < 0.03
    assert apart(shares(top_k=2), expected(2)) < 0.03
    assert apart(shares(top_p=0.65), expected(2)) < 0.03  # 0.64 and 0.24: the second passes 0.65
    assert shares(top_p=0.6).tolist() == [1, 0, 0, 0]
    assert shares(do_sample=False).tolist() == [1, 0, 0, 0]
    drawn = [choose(logits, True, 1.0, 0, 1.0, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*drawn)
    own = [torch.Generator().manual_seed(i) for i in range(4000)]
    assert (
        apart(shares(generator=own), expected(4)) < 0.03 and apart(shares(generator=own, top_k=2), expected(2)) < 0.03
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_cannot_be_divided_by(temperature):
    ours = pair("Data2VecTextForCausalLM", **TINY | {"is_decoder": True})[1]
    with pytest.raises(ValueError, match="temperature should be above 0"):
        ours.generate(IDS[:1, :3], do_sample=True, temperature=temperature)


# ---------------------------------------------------------------------------------------------------------------------
# Compiling, wrong input, full size
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("padded", [True, False])
def test_compiled_without_a_break(padded):
    ours = exact(pair("Data2VecTextForTokenClassification", "sdpa", **TINY | STILL)[1])
    inputs = inputs_of("", padded) | HEADS["Data2VecTextForTokenClassification"][1]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert apart(compiled(**inputs).logits, ours(**inputs).logits) < EXACT
    gradients = []
    for model in (ours, compiled):
        ours.train().zero_grad()
        model(**inputs).loss.backward()
        gradients.append([p.grad.clone() for p in ours.parameters()])
    assert all(apart(a, b) < EXACT for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS + 60}, "input_ids has a 120; should be 0 to 60"),
        ({"input_ids": -IDS}, "input_ids has a -60"),
        ({"input_ids": IDS.float()}, "whole numbers"),
        ({"input_ids": IDS[0]}, r"whole numbers \(B, T\)"),
        ({}, "either input_ids or inputs_embeds"),
        ({"inputs_embeds": torch.zeros(1, 2, 31)}, r"\(B, T, 32\)"),
        ({"input_ids": IDS, "attention_mask": MASK[:, 1:]}, r"attention_mask has shape \(3, 6\); should be \(3, 7\)"),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, "row 0 has no token"),
        ({"input_ids": IDS, "token_type_ids": MASK + 1}, "token_type_ids has a 2"),
        ({"input_ids": IDS, "position_ids": MASK * 40}, "position_ids has a 40"),
        ({"input_ids": torch.full((1, 39), 5)}, "a text of 39 tokens; the model has positions for 38"),
        ({"input_ids": IDS, "labels": IDS}, "label 60 is outside the 3 classes"),
        ({"input_ids": IDS, "labels": IDS[:2]}, "labels have shape"),
    ],
)
def test_wrong_inputs_are_named(arguments, message):
    _, ours = pair("Data2VecTextForTokenClassification", **TINY)
    with pytest.raises(ValueError, match=message):
        ours(**arguments)


def test_wrong_labels_of_texts_are_named():
    _, ours = pair("Data2VecTextForSequenceClassification", **TINY)
    with pytest.raises(ValueError, match="label 3 is outside"):
        ours(IDS, MASK, labels=torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match="labels have shape"):
        ours(IDS, MASK, labels=torch.zeros(3, 2))
    with pytest.raises(InputError, match="needs is_decoder"):
        d2v.Data2VecTextConfig(add_cross_attention=True)


def test_seeds():
    def weights(seed):
        torch.manual_seed(seed)
        return d2v.Data2VecTextForMaskedLM(d2v.Data2VecTextConfig(**TINY)).state_dict()

    a, b, c = weights(3), weights(3), weights(4)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["lm_head.dense.weight"], c["lm_head.dense.weight"])
    table = a["data2vec_text.embeddings.word_embeddings.weight"]
    assert not table[1].any() and table[2:].std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Data2VecTextForMaskedLM", "Data2VecTextForSequenceClassification"])
def test_the_released_configuration_too(name):
    """facebook/data2vec-text-base: RoBERTa base's sizes."""
    base = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    theirs, ours = pair(name, "sdpa", **base | STILL)
    ids = torch.randint(3, 50265, (2, 65))
    labels = ids if "LM" in name else torch.tensor([1, 0])
    inputs = {"input_ids": ids, "labels": labels, "output_hidden_states": True}
    same_outputs(theirs, ours, lambda output: output.loss, **inputs)
