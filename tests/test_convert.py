"""Original checkpoints, written here under the names that fairseq, BEiT's code and Keras gave them, and converted."""

import argparse
import json
import pickle
import re
import subprocess
import sys
from collections import defaultdict
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers

import d2v
from d2v import convert
from d2v.errors import InputError
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.ctc import CTCTokenizer
from d2v.processors.image import ImageProcessor
from tests.helpers import ROOT
from tests.keras.golden import released, write_h5
from tests.parity import EXACT, apart, assert_as_close, exact, pair, widened
from tests.tiny import TINY_AUDIO

BOTH = ("weight", "bias")
LAYERS = 2
LETTERS = "|ETAO'"
CONVS = "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] + [(16,2,2)]"
AUDIO_MODEL = {
    "_name": "data2vec_audio",
    "extractor_mode": "layer_norm",
    "encoder_layers": LAYERS,
    "encoder_embed_dim": 32,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.15,
    "layer_norm_first": False,
    "conv_feature_layers": CONVS,
}
CTC_MODEL = {  # has options of its own that are not the model's
    "_name": "wav2vec_ctc",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.3,
    "dropout_input": 0.0,
    "final_dropout": 0.25,
    "layerdrop": 0.12,
    "encoder_embed_dim": 768,
    "conv_feature_layers": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
    "w2v_args": {"model": AUDIO_MODEL, "task": {"normalize": True}},
}
TEXT_MODEL = {
    "_name": "data2vec_text",
    "max_positions": "${task.tokens_per_sample}",
    "transformer": {
        "dropout": 0.11,
        "attention_dropout": 0.12,
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "encoder": {"embed_dim": 32, "layers": LAYERS, "attention_heads": 4, "normalize_before": False},
    },
}
TINY_TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}
TINY_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}


# What fairseq and BEiT would have saved, given the weights of Hugging Face's model.


def fairseq_audio(hf: dict, prefix: str = "") -> dict:
    names = {"mask_emb": "masked_spec_embed"}
    for i in range(7):
        names[f"feature_extractor.conv_layers.{i}.0.weight"] = f"feature_extractor.conv_layers.{i}.conv.weight"
    for kind in BOTH:
        for i in range(7):
            names[f"feature_extractor.conv_layers.{i}.2.1.{kind}"] = (
                f"feature_extractor.conv_layers.{i}.layer_norm.{kind}"
            )
        for i in range(2):
            names[f"encoder.pos_conv.{i}.0.{kind}"] = f"encoder.pos_conv_embed.layers.{i}.conv.{kind}"
        names[f"post_extract_proj.{kind}"] = f"feature_projection.projection.{kind}"
        names[f"layer_norm.{kind}"] = f"feature_projection.layer_norm.{kind}"
        names[f"encoder.layer_norm.{kind}"] = f"encoder.layer_norm.{kind}"
        for i in range(LAYERS):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                names[f"encoder.layers.{i}.self_attn.{part}.{kind}"] = f"encoder.layers.{i}.attention.{part}.{kind}"
            names[f"encoder.layers.{i}.self_attn_layer_norm.{kind}"] = f"encoder.layers.{i}.layer_norm.{kind}"
            names[f"encoder.layers.{i}.fc1.{kind}"] = f"encoder.layers.{i}.feed_forward.intermediate_dense.{kind}"
            names[f"encoder.layers.{i}.fc2.{kind}"] = f"encoder.layers.{i}.feed_forward.output_dense.{kind}"
            names[f"encoder.layers.{i}.final_layer_norm.{kind}"] = f"encoder.layers.{i}.final_layer_norm.{kind}"
    return {prefix + theirs: hf[ours] for theirs, ours in names.items()}


def fairseq_text(hf: dict, embedding_norm: str = "layernorm_embedding") -> dict:
    body, theirs = "encoder.sentence_encoder", {}
    theirs[f"{body}.version"] = torch.tensor([3.0])
    theirs[f"{body}.embed_tokens.weight"] = hf["embeddings.word_embeddings.weight"]
    theirs[f"{body}.embed_positions.weight"] = hf["embeddings.position_embeddings.weight"]
    for kind in BOTH:
        theirs[f"{body}.{embedding_norm}.{kind}"] = hf[f"embeddings.LayerNorm.{kind}"]
        for i in range(LAYERS):
            ours, layer = f"encoder.layer.{i}", f"{body}.layers.{i}"
            theirs[f"{layer}.self_attn.k_proj.{kind}"] = hf[f"{ours}.attention.self.key.{kind}"]
            theirs[f"{layer}.self_attn.v_proj.{kind}"] = hf[f"{ours}.attention.self.value.{kind}"]
            theirs[f"{layer}.self_attn.q_proj.{kind}"] = hf[f"{ours}.attention.self.query.{kind}"]
            theirs[f"{layer}.self_attn.out_proj.{kind}"] = hf[f"{ours}.attention.output.dense.{kind}"]
            theirs[f"{layer}.self_attn_layer_norm.{kind}"] = hf[f"{ours}.attention.output.LayerNorm.{kind}"]
            theirs[f"{layer}.fc1.{kind}"] = hf[f"{ours}.intermediate.dense.{kind}"]
            theirs[f"{layer}.fc2.{kind}"] = hf[f"{ours}.output.dense.{kind}"]
            theirs[f"{layer}.final_layer_norm.{kind}"] = hf[f"{ours}.output.LayerNorm.{kind}"]
    return theirs


def fairseq_lm_head(hf: dict) -> dict:
    theirs = {"encoder.lm_head.weight": hf["data2vec_text.embeddings.word_embeddings.weight"]}
    theirs["encoder.lm_head.bias"] = hf["lm_head.bias"]
    for part in ("dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias"):
        theirs[f"encoder.lm_head.{part}"] = hf[f"lm_head.{part}"]
    return theirs


def beit(hf: dict, shared: bool) -> dict:
    theirs = {"cls_token": hf["embeddings.cls_token"]}
    table = "relative_position_bias.relative_position_bias_table"
    if shared:
        theirs["rel_pos_bias.relative_position_bias_table"] = hf[f"encoder.{table}"]
        theirs["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
    for kind in BOTH:
        theirs[f"patch_embed.proj.{kind}"] = hf[f"embeddings.patch_embeddings.projection.{kind}"]
    for i in range(LAYERS):
        block, ours = f"blocks.{i}", f"encoder.layer.{i}"
        query, key, value = (f"{ours}.attention.attention.{name}" for name in ("query", "key", "value"))
        theirs[f"{block}.gamma_1"], theirs[f"{block}.gamma_2"] = hf[f"{ours}.lambda_1"], hf[f"{ours}.lambda_2"]
        theirs[f"{block}.attn.q_bias"], theirs[f"{block}.attn.v_bias"] = hf[f"{query}.bias"], hf[f"{value}.bias"]
        theirs[f"{block}.attn.qkv.weight"] = torch.cat([hf[f"{name}.weight"] for name in (query, key, value)])
        if not shared:
            theirs[f"{block}.attn.relative_position_bias_table"] = hf[f"{ours}.attention.attention.{table}"]
            theirs[f"{block}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
        for kind in BOTH:
            theirs[f"{block}.norm1.{kind}"] = hf[f"{ours}.layernorm_before.{kind}"]
            theirs[f"{block}.norm2.{kind}"] = hf[f"{ours}.layernorm_after.{kind}"]
            theirs[f"{block}.attn.proj.{kind}"] = hf[f"{ours}.attention.output.dense.{kind}"]
            theirs[f"{block}.mlp.fc1.{kind}"] = hf[f"{ours}.intermediate.dense.{kind}"]
            theirs[f"{block}.mlp.fc2.{kind}"] = hf[f"{ours}.output.dense.{kind}"]
    return theirs


def body(theirs) -> dict:
    """The weights of the model without its head."""
    return theirs.base_model.state_dict()


# The four originals that most tests use: (weights, the rest of the file), and Hugging Face's model.


def audio_original():
    theirs, _ = pair("Data2VecAudioModel", **TINY_AUDIO)
    weights = fairseq_audio(body(theirs)) | {"_ema": {"layers.0.fc1.bias": torch.ones(2)}}
    weights |= {"final_proj.weight": torch.ones(32, 32), "final_proj.bias": torch.ones(32)}
    return weights, {"args": None, "cfg": {"model": AUDIO_MODEL, "task": {"normalize": True}}}, theirs


def ctc_original():
    theirs, _ = pair("Data2VecAudioForCTC", **TINY_AUDIO, vocab_size=10)
    weights = fairseq_audio(body(theirs), "w2v_encoder.w2v_model.")
    weights |= {f"w2v_encoder.proj.{kind}": theirs.lm_head.state_dict()[kind] for kind in BOTH}
    return weights, {"args": None, "cfg": {"model": CTC_MODEL}}, theirs


def lm_original():
    theirs, _ = pair("Data2VecTextForMaskedLM", **TINY_TEXT)
    theirs.data2vec_text.embeddings.token_type_embeddings.weight.data.zero_()
    weights = fairseq_text(body(theirs)) | fairseq_lm_head(theirs.state_dict())
    return weights | {"encoder._ema": {"version": torch.ones(1)}}, {"cfg": {"model": TEXT_MODEL}}, theirs


def vision_original():
    config = TINY_VISION | {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
    theirs, _ = pair("Data2VecVisionModel", **config, use_mask_token=True)
    weights = beit(body(theirs), shared=True) | {"mask_token": theirs.embeddings.mask_token.data}
    weights |= {f"norm.{kind}": theirs.layernorm.state_dict()[kind] for kind in BOTH}
    weights |= {"lm_head.weight": torch.ones(32, 32), "lm_head.bias": torch.ones(32)}
    return weights, {"epoch": 799, "args": argparse.Namespace(model="beit_base_patch16_224")}, theirs


ORIGINALS = {"audio": audio_original, "ctc": ctc_original, "lm": lm_original, "vision": vision_original}


def write(path, weights, key="model", **rest):
    torch.save({key: weights, **rest}, path)
    return path


def same_model(theirs, out, **inputs):
    """Assert that ours and Hugging Face's class open the folder, and compute what the original did."""
    name = type(theirs).__name__
    assert json.loads((out / "config.json").read_text())["architectures"] == [name]
    ours = getattr(d2v, name).from_pretrained(out)
    opened, report = getattr(transformers, name).from_pretrained(out, output_loading_info=True)
    missing = {key for key in report["missing_keys"] if "pooler.dense" not in key}  # of the bare text model
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        wanted = exact(theirs)(**widened(inputs))[0]
        assert wanted.abs().max() > 0.01
        assert_as_close(ours(**inputs)[0], theirs(**inputs)[0], wanted)
        assert apart(exact(opened.eval())(**widened(inputs))[0], wanted) < EXACT
    return ours.config


def complaint(path, *args) -> str:
    with pytest.raises(InputError) as caught:
        convert.convert(path, path.parent / "out", *args)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


@contextmanager
def foreign(*classes: str):
    """Classes of modules that exist only while a checkpoint is written; `a.b.C` each."""
    made, modules = [], {}
    for path in classes:
        module, _, name = path.rpartition(".")
        for i, character in enumerate(module + "."):
            if character == ".":
                modules.setdefault(module[:i], ModuleType(module[:i]))
        made.append(type(name, (), {"__module__": module}))
        setattr(modules[module], name, made[-1])
    assert not modules.keys() & sys.modules.keys()
    sys.modules.update(modules)
    try:
        yield made
    finally:
        for module in modules:
            del sys.modules[module]


@pytest.mark.parametrize("kind", ["dict", "Namespace", "OmegaConf", "enumeration"])
def test_audio(tmp_path, capsys, kind):
    weights, rest, theirs = audio_original()
    path, out = tmp_path / "audio_base_ls.pt", tmp_path / "out"
    if kind == "dict":
        write(path, weights, **rest, extra_state={"best": np.float64(4.5), "shape": torch.Size([2])})
    elif kind == "Namespace":  # before Hydra
        write(path, weights, args=argparse.Namespace(arch="data2vec_audio", **AUDIO_MODEL))
    elif kind == "OmegaConf":
        with foreign("omegaconf.dictconfig.DictConfig", "omegaconf.nodes.AnyNode") as (config_class, node_class):

            def node(value, parent=None):
                made = (config_class if isinstance(value, dict) else node_class)()
                made._parent, made._metadata = parent, {"resolver_cache": defaultdict(dict, env={"USER": "me"})}
                if isinstance(value, dict):
                    made._content = {key: node(item, made) for key, item in value.items()}
                else:
                    made._val = value
                return made

            write(path, weights, args=None, cfg=node(rest["cfg"]))
    else:
        with foreign("fairseq.dataclass.constants.Choices") as (choices,):
            choices.__new__ = lambda cls, value="": object.__new__(cls)
            choices.__reduce__ = lambda self: (choices, ("gelu",))
            write(path, weights, cfg={"model": AUDIO_MODEL | {"activation_fn": choices("gelu")}})
    convert.convert(path, out)
    parameters = sum(p.numel() for p in theirs.parameters()) / 1e6
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: Data2VecAudioModel, {parameters:.1f} million parameters",
        "left out: the teacher (1)",
        "left out: the head that predicts the teacher's states (2)",
    ]
    config = same_model(theirs, out, input_values=torch.randn(1, 1600))
    assert (config.hidden_dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.2, 0.0)
    assert (config.feat_proj_dropout, config.layerdrop, config.hidden_act) == (0.15, 0.05, "gelu")
    assert config.conv_stride == (5, 2, 2, 2, 2, 2, 2)
    assert AudioFeatureExtractor.from_pretrained(out).do_normalize
    assert transformers.AutoFeatureExtractor.from_pretrained(out).do_normalize


def test_ctc(tmp_path, capsys):
    weights, rest, theirs = ctc_original()
    path, out = write(tmp_path / "audio_base_ls_960h.pt", weights, **rest), tmp_path / "out"
    convert.convert(path, out)
    assert "no vocabulary written" in capsys.readouterr().out and not (out / "vocab.json").exists()
    (tmp_path / "dict.ltr.txt").write_text("".join(f"{letter} {9999 - i}\n" for i, letter in enumerate(LETTERS)))
    convert.convert(path, out)
    config = same_model(theirs, out, input_values=torch.randn(1, 1600))
    assert (config.hidden_dropout, config.activation_dropout, config.feat_proj_dropout) == (0.0, 0.3, 0.0)
    assert (config.layerdrop, config.final_dropout) == (0.12, 0.25)
    # fairseq's order is <s> (its blank), <pad>, </s>, <unk>, and then the file's.
    assert config.pad_token_id == 0
    vocab = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    assert json.loads((out / "vocab.json").read_text()) == {token: i for i, token in enumerate(vocab)}
    tokenizer, other = CTCTokenizer.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("tea to") == other("TEA TO").input_ids == [6, 5, 7, 4, 6, 8]
    heard = [0, 6, 6, 0, 5, 0, 5, 4, 4, 7, 0]
    assert tokenizer.decode(heard) == other.decode(heard) == "TEE A"
    assert len(tokenizer) == len(other) == config.vocab_size


def test_dictionary_of_another_model(tmp_path):
    weights, rest, _ = ctc_original()
    path, dictionary = write(tmp_path / "ctc.pt", weights, **rest), tmp_path / "other.txt"
    dictionary.write_text("A 3\nB 2\n")
    with pytest.raises(InputError, match="6 tokens with fairseq's own four; the checkpoint has 10") as caught:
        convert.convert(path, tmp_path / "out", dictionary)
    assert str(caught.value).startswith(f"{dictionary}: ")
    for wrong in (path, tmp_path / "nowhere.txt"):
        with pytest.raises(InputError, match=f"^{wrong}: not a text file"):
            convert.convert(path, tmp_path / "out", wrong)


def test_a_number_of_heads_that_nothing_tells_is_said(tmp_path, capsys):
    weights, rest, _ = audio_original()
    convert.convert(write(tmp_path / "told.pt", weights, **rest), tmp_path / "told")
    assert "attention heads" not in capsys.readouterr().out
    convert.convert(write(tmp_path / "audio.pt", weights), tmp_path / "out")
    said = "the checkpoint does not say how many attention heads; taken: 1, of 32 channels each"
    assert said in capsys.readouterr().out.splitlines()
    assert json.loads((tmp_path / "out/config.json").read_text())["num_attention_heads"] == 1


def test_a_configuration_that_is_none_is_named(tmp_path):
    weights, _, _ = audio_original()
    for cfg, said in (
        ({"model": "data2vec_audio"}, "its configuration has 'data2vec_audio' for model; should be options by name"),
        ({"model": {"w2v_args": 3}}, "its configuration has 3 for w2v_args; should be options by name"),
        ({"transformer": {"encoder": [1]}}, r"its configuration has [1] for encoder; should be options by name"),
    ):
        assert complaint(write(tmp_path / "audio.pt", weights, cfg=cfg)) == said


def test_text_with_lm_head(tmp_path):
    weights, rest, theirs = lm_original()
    convert.convert(write(tmp_path / "nlp_base.pt", weights, **rest), tmp_path / "out")
    config = same_model(theirs, tmp_path / "out", input_ids=torch.randint(4, 50, (2, 17)))
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.11, 0.12)
    assert (config.max_tokens, config.pad_token_id, config.tie_word_embeddings) == (18, 1, True)
    weights["encoder.lm_head.weight"] = weights["encoder.lm_head.weight"] + 1
    message = complaint(write(tmp_path / "untied.pt", weights, **rest))
    assert message.startswith("encoder.lm_head.weight is a weight that Data2VecTextForMaskedLM has no place for")


def test_text_without_lm_head(tmp_path, capsys):
    theirs, _ = pair("Data2VecTextModel", **TINY_TEXT)
    theirs.embeddings.token_type_embeddings.weight.data.zero_()
    weights = fairseq_text(body(theirs), "emb_layer_norm")
    for i in (0, 2):
        weights |= {f"encoder.regression_head.{i}.{kind}": torch.ones(2) for kind in BOTH}
    weights["encoder.target_model.layers.0.fc1.bias"] = torch.ones(2)
    convert.convert(write(tmp_path / "mine.pt", weights, cfg={"model": TEXT_MODEL}), tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "left out: fairseq's version number (1)",
        "left out: the head that predicts the teacher's states (4)",
        "left out: the teacher (1)",
    ]
    same_model(theirs, tmp_path / "out", input_ids=torch.randint(4, 50, (2, 17)))
    weights |= fairseq_text(body(theirs))  # both names of the embeddings' norm
    message = complaint(write(tmp_path / "twice.pt", weights, cfg={"model": TEXT_MODEL}))
    assert message == "encoder.layernorm_embedding.weight is a weight that Data2VecTextModel has no place for"


@pytest.mark.parametrize("roberta", [True, False])
def test_text_classifier(tmp_path, roberta):
    theirs, _ = pair("Data2VecTextForSequenceClassification", **TINY_TEXT, num_labels=3)
    theirs.data2vec_text.embeddings.token_type_embeddings.weight.data.zero_()
    weights, head = fairseq_text(body(theirs)), theirs.classifier.state_dict()
    name = "sentence_classification_head" if roberta else "mnli"
    weights |= {f"classification_heads.{name}.{part}": value for part, value in head.items()}
    rest = {"cfg": {"model": TEXT_MODEL}}
    if roberta:  # fairseq's GLUE recipes fine-tune with its RoBERTa, whose options are flat
        weights |= {"encoder.lm_head.bias": torch.ones(50), "encoder.lm_head.dense.weight": torch.ones(32, 32)}
        flat = {"encoder_attention_heads": 4, "encoder_normalize_before": False, "pooler_dropout": 0.3}
        rest = {"args": argparse.Namespace(arch="roberta_base", activation_fn="gelu", **flat)}
    convert.convert(write(tmp_path / "mnli.pt", weights, **rest), tmp_path / "out")
    config = same_model(theirs, tmp_path / "out", input_ids=torch.randint(4, 50, (2, 17)))
    assert (config.num_labels, config.classifier_dropout) == (3, 0.3 if roberta else 0.0)
    weights |= {f"classification_heads.another.{part}": value for part, value in head.items()}
    assert f"another, {name}; only one" in complaint(write(tmp_path / "two.pt", weights, **rest))


def test_vision(tmp_path, capsys):
    weights, rest, theirs = vision_original()
    convert.convert(write(tmp_path / "checkpoint-799.pth", weights, **rest), tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out: tables that are computed (1)",
        "left out: the head that predicts the teacher's states (2)",
    ]
    mask = torch.rand(2, 16) < 0.5
    config = same_model(theirs, tmp_path / "out", pixel_values=torch.randn(2, 3, 32, 32), bool_masked_pos=mask)
    assert (config.num_attention_heads, config.image_size, config.layer_norm_eps) == (4, 32, 1e-6)
    assert ImageProcessor.from_pretrained(tmp_path / "out").size == {"height": 32, "width": 32}


@pytest.mark.parametrize("key", ["model", "module"])
def test_vision_classifier(tmp_path, key):
    config = TINY_VISION | {"use_relative_position_bias": True, "num_labels": 7}
    theirs, _ = pair("Data2VecVisionForImageClassification", **config)
    if key == "module":  # DeepSpeed keeps half precision
        theirs = theirs.half().float()
    weights = beit(body(theirs), shared=False)
    for kind in BOTH:
        weights[f"fc_norm.{kind}"] = theirs.data2vec_vision.pooler.layernorm.state_dict()[kind]
        weights[f"head.{kind}"] = theirs.classifier.state_dict()[kind]
    if key == "module":
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    convert.convert(write(tmp_path / "finetuned_base.pt", weights, key), tmp_path / "out")
    config = same_model(theirs, tmp_path / "out", pixel_values=torch.randn(2, 3, 32, 32))
    assert config.use_mean_pooling and not config.use_shared_relative_position_bias and config.num_labels == 7


@pytest.mark.parametrize("head", ["Model", "ForImageClassification", "ForSemanticSegmentation"])
def test_tensorflow(tmp_path, head):
    pytest.importorskip("h5py")
    config = TINY_VISION | {"use_relative_position_bias": True, "num_labels": 5, "use_mask_token": True}
    if head == "ForSemanticSegmentation":
        config |= {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 16}
    if head == "Model":
        config |= {"use_shared_relative_position_bias": True, "use_mean_pooling": False}
    theirs, _ = pair(f"Data2VecVision{head}", **config)
    prefix = "data2vec_vision." if head == "Model" else ""
    weights = {prefix + key: value for key, value in theirs.state_dict().items() if "num_batches" not in key}
    named = dict(released(*item) for item in weights.items())
    assert named["data2vec_vision/encoder/layer_._0/attention/attention/query/kernel:0"].shape == (32, 32)
    assert named["data2vec_vision/embeddings/patch_embeddings/projection/kernel:0"].shape == (8, 8, 3, 32)
    assert "data2vec_vision/encoder/layer_._1/layernorm_before/gamma:0" in named
    if head == "ForSemanticSegmentation":
        assert named["fpn1.0/kernel:0"].shape == (2, 2, 32, 32) and "fpn1.1/moving_variance:0" in named
        assert {
            "decode_head/psp_modules/0.1/bn/moving_mean:0",
            "decode_head/bottleneck/conv/kernel:0",
        } <= named.keys()
        assert {"decode_head/lateral_convs.0/bn/gamma:0", "auxiliary_head/convs.0/conv/kernel:0"} <= named.keys()
    theirs.config.save_pretrained(tmp_path)
    write_h5(tmp_path, weights)
    ImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    convert.convert(tmp_path / "tf_model.h5", tmp_path / "out")
    same_model(theirs, tmp_path / "out", pixel_values=torch.randn(2, 3, 32, 32))
    assert ImageProcessor.from_pretrained(tmp_path / "out").image_mean == [0.1, 0.2, 0.3]
    (tmp_path / "tf_model.h5").write_bytes((tmp_path / "tf_model.h5").read_bytes()[:2000])
    assert complaint(tmp_path / "tf_model.h5").startswith("damaged, or not an HDF5 file")
    (tmp_path / "config.json").unlink()
    assert "no config.json" in complaint(tmp_path / "tf_model.h5")


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_weight_is_used_once(tmp_path, name):
    weights, rest, _ = ORIGINALS[name]()
    path = tmp_path / "model.pt"
    unused = {"mask_token"}  # models without one exist
    unused |= {key for key in weights if re.search(r"_ema|final_proj|version|relative_position_index", key)}
    unused |= {key for key in weights if name == "vision" and key.startswith("lm_head.")}
    for key in weights:
        write(path, {k: v for k, v in weights.items() if k != key}, **rest)
        if key in unused:
            convert.read(path)
            continue
        assert re.match(r"has no weight|conv_feature_layers|.* has no place|.* has shape", complaint(path)), key
    for extra in (
        "quantizer.weight_proj.weight",
        "encoder.pos_conv.0.weight_g",
        *(f"x.{key}" for key in [*weights][::5]),
    ):
        message = complaint(write(path, weights | {extra: torch.ones(2)}, **rest))
        assert message.startswith(extra.replace("sentence_encoder.", "") + " is a weight that ")


def test_what_cannot_be_converted(tmp_path):
    weights, rest, _ = audio_original()
    path = tmp_path / "model.pt"
    assert complaint(path) == "no such file"
    for options, message in (
        ({"layer_norm_first": True}, "was trained with layer_norm_first True; only False can be converted"),
        ({"conv_feature_layers": "[(16, 10, 5)] * 7"}, "conv_feature_layers '[(16, 10, 5)] * 7' are not those"),
        ({"conv_feature_layers": "__import__('os').abort()"}, "conv_feature_layers"),
        ({"encoder_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"activation_fn": "linear"}, "Data2VecAudioConfig.hidden_act should be"),
        ({"dropout": "${a}"}, "Data2VecAudioConfig.hidden_dropout should be float, not '${a}'"),
    ):
        assert complaint(write(path, weights, cfg={"model": AUDIO_MODEL | options})).startswith(message)
    wide = {"encoder.layer_norm.weight": torch.ones(1024)}  # without options 12 heads would not divide it
    assert complaint(write(path, weights | wide)) == "mask_emb has shape (32,); should be (1024,)"
    bias = "encoder.layers.1.fc1.bias"
    message = complaint(write(path, weights | {bias: torch.ones(3)}, **rest))
    assert message == f"{bias} has shape (3,); should be (64,)"
    assert complaint(write(path, weights | {bias: 3}, **rest)) == f"{bias} is not a tensor"
    modality = "modality_encoders.AUDIO.context_encoder.norm.weight"
    assert "2.0 is another architecture" in complaint(write(path, {modality: torch.ones(2)}))
    for value in ([torch.ones(1)], torch.ones(1)):
        torch.save(value, path)
        assert complaint(path).startswith("damaged, hostile, or not the zip file of torch.save")
    for value in ({}, {"model": [torch.ones(1)]}, {"model": None, "args": None}):
        torch.save(value, path)
        assert complaint(path).startswith("no weights under 'model' or 'module'")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_damaged_file(tmp_path, share):
    weights, rest, _ = audio_original()
    path = write(tmp_path / "model.pt", weights, **rest)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert complaint(path).startswith("damaged, hostile, or not the zip file of torch.save")


def test_older_formats_are_named(tmp_path):
    weights, rest, _ = audio_original()
    torch.save({"model": weights, **rest}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "zip file" in complaint(tmp_path / "old.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"model": 1}))
    assert "zip file" in complaint(tmp_path / "plain.pt")


class Call:
    """Pickled as a call; with a state, as one that is then built."""

    def __init__(self, function, *args, state=None):
        self.call, self.state = (function, args), state

    def __reduce__(self):
        return (*self.call, self.state) if self.state else self.call


class Armed:
    """An honest class of this process, whose methods must not run either."""

    def __new__(cls, *args):
        assert not ran
        return super().__new__(cls)

    def __setstate__(self, state):
        ran.append(state)


ran = []


@pytest.mark.parametrize("place", ["rest", "cfg", "model"])
@pytest.mark.parametrize("attack", ["mkdir", "exec", "eval", "run", "getattr", "Armed"])
def test_no_code_in_a_pickle_runs(tmp_path, place, attack):
    weights, rest, _ = audio_original()
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    code = f"import os; os.mkdir({str(mark)!r})"
    hostile = {
        "mkdir": Call(__import__("os").mkdir, str(mark)),
        "exec": Call(exec, code, state={"x": 1}),
        "eval": Call(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "run": Call(subprocess.check_call, ["mkdir", str(mark)]),
        "getattr": Call(getattr, Call(__import__, "os"), "mkdir"),
        "Armed": Armed(),
    }[attack]
    if attack == "Armed":
        hostile.x = 1
    state = {"model": dict(weights), "cfg": dict(rest["cfg"]), "rest": {}}
    state[place]["task" if place == "cfg" else "x"] = hostile
    torch.save(state, path)
    try:
        convert.convert(path, tmp_path / "out")
    except InputError as error:
        assert place == "model" or attack == "mkdir", error  # torch refuses some modules under any name
    else:
        assert (tmp_path / "out/model.safetensors").is_file()
    assert not mark.exists() and ran == []
    if attack in ("mkdir", "exec", "eval", "run"):  # where code may run, it does
        with pytest.raises((TypeError, AttributeError)) if attack == "exec" else contextmanager(lambda: (yield))():
            torch.load(path, weights_only=False)
        assert mark.exists()


def test_command_line(tmp_path, capsys):
    weights, rest, _ = ctc_original()
    path = write(tmp_path / "model.pt", weights, **rest)
    (tmp_path / "letters.txt").write_text("".join(f"{letter} 1\n" for letter in LETTERS))
    command = [sys.executable, "-m", "d2v.convert", str(path), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--dict", str(tmp_path / "letters.txt")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: Data2VecAudioForCTC, ") and done.stderr == ""
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == files | {"vocab.json", "tokenizer_config.json"}
    del weights["w2v_encoder.proj.bias"]
    for arguments, message in (
        ([str(write(path, weights, **rest)), str(tmp_path / "out")], "lm_head.bias"),
        ([str(tmp_path / "nowhere.pt"), str(tmp_path / "out")], "no such file"),
    ):
        with pytest.raises(SystemExit) as caught:
            convert.main(arguments)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and error.count("\n") == 1
        assert error.startswith(f"error: {arguments[0]}: ") and message in error
