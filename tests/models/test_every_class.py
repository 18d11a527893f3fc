"""Every documented class beside transformers', in one table: same weights, same numbers; printed after the tests.

The columns are the largest differences: of logits or last states, hidden states and attentions at real positions, as
a share of the largest value; of the loss, relative; of gradients, as a share of the largest. Empty: no loss. What is
allowed depends on how far transformers' numbers are from float64's, see `tests/parity.py`.
"""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import d2v
from d2v.hub import rename
from tests.parity import (
    TABLE,
    assert_as_close,
    exact,
    flat,
    opens_both_ways,
    pair,
    same_gradients,
    same_loss_in_float64,
    spread_of,
    widened,
)
from tests.tiny import STILL_AUDIO

ENCODER = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
AUDIO = ENCODER | STILL_AUDIO | {"conv_dim": [32] * 7, "num_conv_pos_embedding_groups": 4, "vocab_size": 11}
AUDIO |= {"num_labels": 3, "tdnn_dim": [16, 16, 16, 16, 24], "xvector_output_dim": 16, "ctc_zero_infinity": True}
TEXT = ENCODER | {"vocab_size": 61, "max_position_embeddings": 40, "num_labels": 3, "use_cache": False}
VISION = ENCODER | {"image_size": 35, "patch_size": 7, "use_relative_position_bias": True, "num_labels": 3}
VISION |= {"drop_path_rate": 0.0, "out_indices": [2, 3, 4, 5]}
CLASSES = [name for name in d2v.__all__ if not name.endswith("Config")]
LEFT = ("ForCausalLM", "ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")


def labels_for(name: str, batch: int, shape: tuple[int, ...], form: str) -> dict[str, torch.Tensor]:
    """Labels that a head takes: (batch,) classes, or of the shape of what it classifies; `form` where there are two."""
    if name.endswith("Model"):
        return {}
    if "Question" in name:
        return {key: torch.randint(0, shape[1], (batch,)) for key in ("start_positions", "end_positions")}
    if "Segmentation" in name:
        return {"labels": torch.randint(0, 3, (batch, *shape[2:]))}
    if "FrameClassification" in name:
        return {"labels": torch.nn.functional.one_hot(torch.randint(0, 3, (batch, d2v_frames(shape[1]))), 3)}
    if "CTC" in name:
        return {"labels": torch.randint(1, 11, (batch, 4))}
    if "LM" in name or "Token" in name:
        labels = torch.randint(0, 3, shape)
        return {"labels": labels.masked_fill(torch.rand(shape) < 0.3, -100)}
    if form == "several" and name in ("Data2VecTextForSequenceClassification", "Data2VecVisionForImageClassification"):
        return {"labels": torch.randint(0, 2, (batch, 3)).float()}
    return {"labels": torch.randint(0, 3, (batch,))}


def d2v_frames(samples: int) -> int:
    return d2v.Data2VecAudioConfig().frames(samples)


def models(name: str, form: str = "single"):
    """The pair in evaluation mode, eager."""
    config = AUDIO if "Audio" in name else VISION if "Vision" in name else TEXT
    if name.endswith("CausalLM"):
        config = config | {"is_decoder": True}
    if "Question" in name:
        config = config | {"num_labels": 2}
    if form == "several":
        config = config | {"problem_type": "multi_label_classification"}
    theirs, ours = pair(name, **config)
    with torch.no_grad():  # heads as initialised say nearly the same of every input, which hides mistakes
        for theirs_name, parameter in theirs.named_parameters():
            if not theirs_name.startswith(ours.base_model_prefix) and parameter.ndim > 1:
                parameter.mul_(5)
    weights = {rename(key, ours.renames, to_ours=True): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(ours.adapt_weights(weights))
    return theirs, ours


def record(name: str, **differences: float) -> None:
    row = TABLE.setdefault(name, {})
    for column, difference in differences.items():
        row[column] = max(row.get(column, 0.0), difference)


def compare(name: str, theirs, ours, inputs: dict, labels: dict, real: torch.Tensor | None = None) -> None:
    """Outputs, loss and gradients of one batch; `real`, (B, T) bool, says where outputs count."""
    reference = exact(theirs)
    seen = inputs | {"output_hidden_states": True, "output_attentions": True} | labels
    outputs = found, expected, _ = ours(**seen), theirs(**seen), reference(**widened(seen))
    # The same mapping in the same order; theirs has empty cross-attentions of a decoder that has none.
    keys = [key for key, value in expected.items() if value != ()]
    assert [key for key in found if key != "auxiliary_logits"] == keys

    def at_real(x: torch.Tensor) -> torch.Tensor:
        if real is not None and x.shape[:2] == real.shape:
            return x[real]
        if real is not None and x.ndim == 4 and x.shape[-1] == real.shape[1]:  # attentions
            return x.transpose(1, 2)[real]
        return x

    def share(*fields: str) -> float:
        fields = [field for field in fields if field in keys]
        return assert_as_close(*([at_real(x) for x in flat([output[f] for f in fields])] for output in outputs))

    heads = ["logits", "start_logits", "end_logits", "embeddings", "last_hidden_state", "pooler_output"]
    for field in set(heads) & set(keys):
        record(name, outputs=share(field))
    record(name, hidden=share("hidden_states"), attentions=share("attentions"))
    if labels:
        # A loss comes from logits, and is as uncertain as they are, however near to float64 theirs is by chance.
        share("loss", "logits", "start_logits", "end_logits")
        record(name, loss=abs(found.loss.item() / expected.loss.item() - 1))
    if "CTC" in name:
        same_loss_in_float64(theirs, ours, **inputs, **labels)
    for output in outputs:
        if labels and "CTC" not in name:
            output.loss.backward()
        else:
            spread_of(at_real(output["logits" if labels else "last_hidden_state"])).backward()
    record(name, gradients=same_gradients(theirs, ours, reference))


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("form", ["single", "several"])
def test_without_padding(name, batch, form):
    if form == "several" and not labels_for(name, 1, (1, 5001), form).get("labels", torch.zeros(1)).is_floating_point():
        pytest.skip("the head has one form of labels")
    torch.manual_seed(batch)
    theirs, ours = models(name, form)
    if "Audio" in name:
        shape, key = (batch, 8001), "input_values"
        inputs = {key: torch.randn(shape)}
    elif "Vision" in name:
        shape, key = (batch, 3, 35, 35), "pixel_values"
        inputs = {key: torch.randn(shape)}
    else:
        shape = (batch, 3, 11) if "Choice" in name else (batch, 11)
        inputs = {"input_ids": torch.randint(3, 61, shape)}
    compare(name, theirs, ours, inputs, labels_for(name, batch, shape, form))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [name for name in CLASSES if "Text" in name and "Choice" not in name])
def test_padded_texts(name, side):
    if side == "left" and not name.endswith(LEFT):
        pytest.skip("reads the first token, which is padding there")
    torch.manual_seed(0)
    theirs, ours = models(name)
    texts = [torch.randint(3, 61, (length,)) for length in (9, 4, 7)]
    ids = pad_sequence(texts, batch_first=True, padding_value=1, padding_side=side)
    real = ids != 1
    labels = labels_for(name, 3, tuple(ids.shape), "single")
    if labels.get("labels", ids[0]).shape == ids.shape:
        first = real & (real.cumsum(1) == 1)  # of a causal model guessed from padding
        labels = {"labels": labels["labels"].masked_fill(~real | first, -100)}
    if "Question" in name:  # their softmax counts the padding
        outputs = [model(ids, attention_mask=real.long()) for model in (ours, theirs, exact(theirs))]
        for field in ("start_logits", "end_logits"):
            record(name, outputs=assert_as_close(*(output[field][real] for output in outputs)))
        return
    compare(name, theirs, ours, {"input_ids": ids, "attention_mask": real.long()}, labels, real)


@pytest.mark.parametrize("name", [name for name in CLASSES if "Audio" in name])
def test_padded_clips_one_by_one(name):
    torch.manual_seed(0)
    theirs, ours = models(name)
    clips = [torch.randn(samples) for samples in (9001, 6000, 12_345)]
    batch = pad_sequence(clips, batch_first=True)
    mask = torch.stack([torch.arange(batch.shape[1]) < len(clip) for clip in clips]).long()
    found = ours(batch, mask, output_hidden_states=True)
    reference = exact(theirs)
    for i, clip in enumerate(clips):
        expected = theirs(clip[None], output_hidden_states=True)
        wanted = reference(clip[None].double(), output_hidden_states=True)
        field = "last_hidden_state" if name.endswith("Model") else "logits"
        a, b = found[field][i], expected[field][0]
        record(name, outputs=assert_as_close(a[: len(b)] if b.ndim == 2 else a, b, wanted[field][0]))
        frames = expected.hidden_states[0].shape[1]
        states = [state[i, None, :frames] for state in found.hidden_states]
        record(name, hidden=assert_as_close(states, expected.hidden_states, wanted.hidden_states))


@pytest.mark.parametrize("name", CLASSES)
def test_saved_and_opened_on_either_side(name, tmp_path):
    theirs, ours = models(name)
    inputs = {"input_values": torch.randn(1, 9001)} if "Audio" in name else {"pixel_values": torch.randn(1, 3, 35, 35)}
    if "Text" in name:
        inputs = {"input_ids": torch.randint(3, 61, (1, 2, 9) if "Choice" in name else (1, 9))}
    opens_both_ways(theirs, ours, tmp_path, **inputs)
    tied = {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    names = [rename(key, ours.renames) for key in ours.state_dict()]
    assert len(set(names)) == len(names) and set(names) == set(theirs.state_dict()) - tied
    TABLE.setdefault(name, {})["opens"] = "both ways"
