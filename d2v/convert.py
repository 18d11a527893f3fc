"""Checkpoints in the formats that data2vec was released in, to a folder as Hugging Face writes it.

    python -m d2v.convert audio_base_ls_960h.pt data2vec-audio-base-960h --dict dict.ltr.txt

Reads what fairseq wrote for speech (pretrained, or with CTC) and language (pretrained, with or without a language
modelling head, or with a classification head), what BEiT's code wrote for images (pretrained, or a classifier), and the
image models' `tf_model.h5`. It needs neither fairseq nor TensorFlow, and runs no code that is in a pickle. Every weight
has to find its place: one that is unknown, missing or of another shape is an error.
"""

import argparse
import re
from collections import Counter
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import d2v
from d2v.cli import exit_with, given_path
from d2v.errors import InputError
from d2v.hub import read_h5, rename, write_json
from d2v.models.audio import AudioPreTrainedModel
from d2v.models.base import PreTrainedModel
from d2v.models.configuration import sides
from d2v.models.vision import VisionPreTrainedModel
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.ctc import CTCTokenizer
from d2v.processors.image import ImageProcessor

Weights = dict[str, Tensor]
Table = tuple[tuple[str, str], ...]
Original = tuple[PreTrainedModel, Weights, Table, Table]  # the tables: of names, and of what is left out

# Pieces of original names and ours, as `d2v.hub.rename` takes them: the first row that fits counts.
# fairseq: fairseq/modules/transformer_layer.py
FAIRSEQ = (
    ("encoder.layers.*.self_attn.", "encoder.layers.*.attn."),
    ("encoder.layers.*.self_attn_layer_norm.", "encoder.layers.*.attn_norm."),
    ("encoder.layers.*.fc", "encoder.layers.*.ffn.fc"),
    ("encoder.layers.*.final_layer_norm.", "encoder.layers.*.ffn_norm."),
)
# fairseq: examples/data2vec/models/data2vec_audio.py, fairseq/models/wav2vec/{wav2vec2,wav2vec2_asr}.py
AUDIO = (
    *FAIRSEQ,
    ("feature_extractor.conv_layers.*.0.", "feature_extractor.conv_layers.*.conv."),
    ("feature_extractor.conv_layers.*.2.1.", "feature_extractor.conv_layers.*.layer_norm."),
    ("post_extract_proj.", "feature_projection.projection."),
    ("mask_emb", "masked_spec_embed"),
    ("encoder.pos_conv.*.0.", "encoder.pos_conv_embed.layers.*.conv."),
    ("encoder.layer_norm.", "encoder.layer_norm."),
    ("layer_norm.", "feature_projection.layer_norm."),
    ("proj.", "lm_head."),
)
# fairseq: examples/data2vec/models/data2vec_text.py, fairseq/models/roberta/model.py
TEXT = (
    *FAIRSEQ,
    ("encoder.embed_tokens.", "embeddings.word_embeddings."),
    ("encoder.embed_positions.", "embeddings.position_embeddings."),
    ("encoder.layernorm_embedding.", "embeddings.layer_norm."),
    ("encoder.emb_layer_norm.", "embeddings.layer_norm."),  # its older name
    ("encoder.lm_head.", "lm_head."),
)
# data2vec_vision: beit/modeling_cyclical.py, beit/modeling_finetune.py
VISION = (
    ("cls_token", "embeddings.cls_token"),
    ("mask_token", "embeddings.mask_token"),
    ("patch_embed.proj.", "embeddings.projection."),
    ("rel_pos_bias.", "encoder.relative_position_bias."),
    ("blocks.*.norm1.", "encoder.layers.*.attn_norm."),
    ("blocks.*.norm2.", "encoder.layers.*.ffn_norm."),
    ("blocks.*.gamma_1", "encoder.layers.*.attn_scale"),
    ("blocks.*.gamma_2", "encoder.layers.*.ffn_scale"),
    ("blocks.*.attn.q_bias", "encoder.layers.*.attn.q_proj.bias"),
    ("blocks.*.attn.v_bias", "encoder.layers.*.attn.v_proj.bias"),
    ("blocks.*.attn.proj.", "encoder.layers.*.attn.out_proj."),
    ("blocks.*.attn.relative_", "encoder.layers.*.attn.relative_position_bias.relative_"),
    ("blocks.*.attn.", "encoder.layers.*.attn."),
    ("blocks.*.mlp.", "encoder.layers.*.ffn."),
    ("norm.", "layernorm."),
    ("fc_norm.", "pooler.layernorm."),
    ("head.", "classifier."),
)
# What is left out: names, as regular expressions, and what the weights are.
TEACHER, HEAD = "the teacher", "the head that predicts the teacher's states"
LEFT_OUT = (
    (r"(encoder\.)?_ema$|encoder\.target_model\.", TEACHER),
    (r"final_proj\.|encoder\.regression_head\.|encoder\.emb_head\.", HEAD),
    (r"encoder\.version$", "fairseq's version number"),
    (r"(rel_pos_bias|blocks\.\d+\.attn)\.relative_position_index$", "tables that are computed"),
)

# fairseq's options that weights do not tell, and our configurations' fields.
AUDIO_OPTIONS = {
    "encoder_attention_heads": "num_attention_heads",
    "activation_fn": "hidden_act",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "feat_proj_dropout",
    "final_dropout": "final_dropout",
    "encoder_layerdrop": "layerdrop",
    "layerdrop": "layerdrop",  # fine-tuning's name; it wins
}
TEXT_OPTIONS = {
    "encoder_attention_heads": "num_attention_heads",
    "activation_fn": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pooler_dropout": "classifier_dropout",
}
# Options that make another model of the same weights; so are those of all released models.
REQUIRED = {"layer_norm_first": False, "encoder_normalize_before": False, "no_scale_embedding": True}
HEAD_WIDTH = 64  # channels of an attention head in all released models; for checkpoints that do not tell


class Inert:
    """Stands in a pickle for whatever it names besides torch's tensors and containers; keeps what it is given."""

    def __new__(cls, *args):
        """What a pickle makes or calls."""
        self = super().__new__(cls)
        self.state = args[0] if len(args) == 1 else args  # of a member of an enumeration, its value
        return self

    def __setstate__(self, state):
        self.state = state


def plain(value: Any) -> Any:
    """A pickled configuration as dictionaries: it may also be a Namespace or OmegaConf's."""
    if isinstance(value, Inert):
        state = value.state
        return plain(state.get("_content", state.get("_val", state)) if isinstance(state, dict) else state)
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def read_pickle(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights and the configuration in a file that `torch.save` wrote; no code in it runs."""
    try:
        # torch's unpickler for weights imports nothing, and calls only what it is told to trust. Here that is Inert,
        # under every name in the file that torch does not know.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        # OmegaConf keeps things in a defaultdict, and torch fills nothing but dictionaries.
        trusted: list[Any] = [((lambda *_: {}) if name == "collections.defaultdict" else Inert, name) for name in names]
        with torch.serialization.safe_globals(trusted):
            # Memory-mapped, so that the optimiser's state, two thirds of a checkpoint, is not read.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        weights = state.get("model", state.get("module"))  # DeepSpeed says module
        config = plain(state.get("cfg") or state.get("args") or {})
    except Exception as error:  # nearly anything can come of a damaged or hostile pickle
        raise InputError("damaged, hostile, or not the zip file of torch.save since 1.6") from error
    if not isinstance(weights, dict) or not isinstance(config, dict):
        raise InputError("no weights under 'model' or 'module', where fairseq and BEiT write them")
    if wrong := [key for key, value in weights.items() if not isinstance(value, Tensor) and not key.endswith("_ema")]:
        raise InputError(f"{wrong[0]} is not a tensor")
    return weights, config


def fairseq_options(config: dict[str, Any], names: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's options, and those in `names` as fields of our configuration."""
    options = group(config, "model") or config  # before Hydra a single Namespace had all options
    if pretrained := group(options, "w2v_args"):  # fine-tuning keeps pretraining's options but for the dropouts
        own = {key: value for key, value in options.items() if key in names and value is not None}
        options = (group(pretrained, "model") or pretrained) | own
    transformer = group(options, "transformer")
    options = options | transformer | {f"encoder_{k}": v for k, v in group(transformer, "encoder").items()}
    for key, value in REQUIRED.items():
        if options.get(key, value) != value:
            raise InputError(f"was trained with {key} {options[key]}; only {value} can be converted")
    return options, {ours: options[theirs] for theirs, ours in names.items() if options.get(theirs) is not None}


def group(options: dict[str, Any], name: str) -> dict[str, Any]:
    """The options under a name, none if it is not there."""
    found = options.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"its configuration has {found!r:.40} for {name}; should be options by name")
    return found


def guessed_heads(width: int, values: dict[str, Any]) -> dict[str, int]:
    """The number of attention heads where the configuration does not have it, said: no shape of a weight tells it."""
    if "num_attention_heads" in values:
        return {}
    number = width // HEAD_WIDTH or 1
    print(f"the checkpoint does not say how many attention heads; taken: {number}, of {width // number} channels each")
    return {"num_attention_heads": number}


def count(weights: Weights, prefix: str) -> int:
    """How many numbers follow a prefix of names: layers, for one."""
    return len({key[len(prefix) :].partition(".")[0] for key in weights if key.startswith(prefix)})


def audio(weights: Weights, config: dict[str, Any]) -> Original:
    """A data2vec_audio of fairseq, or a wav2vec_ctc around one."""
    weights = {re.sub(r"^(w2v_encoder\.)?(w2v_model\.)?", "", key): value for key, value in weights.items()}
    options, values = fairseq_options(config, AUDIO_OPTIONS)
    number = count(weights, "feature_extractor.conv_layers.")
    convs = [weights[f"feature_extractor.conv_layers.{i}.0.weight"] for i in range(number)]
    width, positions = len(weights["encoder.layer_norm.weight"]), weights["encoder.pos_conv.0.0.weight"]
    if layers := options.get("conv_feature_layers"):
        # "[(512, 10, 5)] + [(512, 3, 2)] * 4 + ...": channels, kernel, stride
        terms = re.findall(r"\((\d+), *(\d+), *(\d+)\) *\]?(?: *\* *(\d{1,2}))?", layers)
        found = [tuple(map(int, term)) for *term, times in terms for _ in range(int(times or 1))]
        if [conv[:2] for conv in found] != [(len(conv), conv.shape[2]) for conv in convs]:
            raise InputError(f"conv_feature_layers {layers!r} are not those of the weights")
        values["conv_stride"] = [stride for _, _, stride in found]
    values |= guessed_heads(width, values)
    values |= {
        "hidden_size": width,
        "num_hidden_layers": count(weights, "encoder.layers."),
        "intermediate_size": len(weights["encoder.layers.0.fc1.weight"]),
        "conv_dim": [len(conv) for conv in convs],
        "conv_kernel": [conv.shape[2] for conv in convs],
        "conv_bias": "feature_extractor.conv_layers.0.0.bias" in weights,
        "num_conv_pos_embeddings": count(weights, "encoder.pos_conv."),
        "conv_pos_kernel_size": positions.shape[2],
        "num_conv_pos_embedding_groups": width // positions.shape[1],
    }
    model_class: type[AudioPreTrainedModel] = d2v.Data2VecAudioModel
    if "proj.weight" in weights:
        model_class, values["vocab_size"] = d2v.Data2VecAudioForCTC, len(weights["proj.weight"])
    return model_class(d2v.Data2VecAudioConfig(**values)), weights, AUDIO, LEFT_OUT


def text(weights: Weights, config: dict[str, Any]) -> Original:
    """A data2vec_text of fairseq, or a RoBERTa that was fine-tuned from one."""
    weights = {key.replace("encoder.sentence_encoder.", "encoder."): value for key, value in weights.items()}
    _, values = fairseq_options(config, TEXT_OPTIONS)
    embeddings = weights["encoder.embed_tokens.weight"]
    size, width = embeddings.shape
    weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)  # fairseq has no token types
    values = {"classifier_dropout": 0.0} | values | guessed_heads(width, values)
    values |= {
        "vocab_size": size,
        "hidden_size": width,
        "num_hidden_layers": count(weights, "encoder.layers."),
        "intermediate_size": len(weights["encoder.layers.0.fc1.weight"]),
        "max_position_embeddings": len(weights["encoder.embed_positions.weight"]),
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,  # torch's default, which fairseq leaves
    }
    heads = sorted({key.split(".")[1] for key in weights if key.startswith("classification_heads.")})
    if len(heads) > 1:
        raise InputError(f"has the classification heads {', '.join(heads)}; only one can be converted")
    if heads:
        head = f"classification_heads.{heads[0]}."
        own = d2v.Data2VecTextConfig(**values, num_labels=len(weights[head + "out_proj.weight"]))
        left_out: Table = (*LEFT_OUT, (r"encoder\.lm_head\.", "the language modelling head"))
        return d2v.Data2VecTextForSequenceClassification(own), weights, (*TEXT, (head, "classifier.")), left_out
    own, left_out = d2v.Data2VecTextConfig(**values), LEFT_OUT
    if "encoder.lm_head.weight" not in weights:
        return d2v.Data2VecTextModel(own, add_pooling_layer=False), weights, TEXT, left_out
    if torch.equal(weights["encoder.lm_head.weight"], embeddings):
        left_out = (*LEFT_OUT, (r"encoder\.lm_head\.weight$", "a copy of the embeddings"))
    return d2v.Data2VecTextForMaskedLM(own), weights, TEXT, left_out


def vision(weights: Weights, _: dict[str, Any]) -> Original:
    """A model of BEiT's code for data2vec: the pretrained one, or the classifier."""
    depth, patches = count(weights, "blocks."), weights["patch_embed.proj.weight"]
    for i in range(depth):
        thirds = zip("qkv", weights.pop(f"blocks.{i}.attn.qkv.weight").chunk(3), strict=True)
        weights |= {f"blocks.{i}.attn.{name}_proj.weight": third for name, third in thirds}
    shared, own = "rel_pos_bias.relative_position_bias_table", "blocks.0.attn.relative_position_bias_table"
    table = weights[shared if shared in weights else own]
    config = d2v.Data2VecVisionConfig(
        hidden_size=len(patches),
        num_hidden_layers=depth,
        num_attention_heads=table.shape[1],
        intermediate_size=len(weights["blocks.0.mlp.fc1.weight"]),
        layer_norm_eps=1e-6,  # beit/modeling_finetune.py; the released conversions say 1e-12
        # A row for each offset between patches, (2 * side - 1)^2 of them, and three for the class token.
        image_size=(isqrt(len(table) - 3) + 1) // 2 * patches.shape[2],
        patch_size=patches.shape[2],
        num_channels=patches.shape[1],
        use_mask_token="mask_token" in weights,
        use_relative_position_bias=own in weights,
        use_shared_relative_position_bias=shared in weights,
        use_mean_pooling="fc_norm.weight" in weights,
        layer_scale_init_value=0.1 if "blocks.0.gamma_1" in weights else 0.0,
        num_labels=len(weights["head.weight"]) if "head.weight" in weights else 2,
    )
    model_class = d2v.Data2VecVisionForImageClassification if "head.weight" in weights else d2v.Data2VecVisionModel
    return model_class(config), weights, VISION, (*LEFT_OUT, (r"lm_head\.", HEAD))


def tensorflow(path: Path) -> Original:
    """An image model in Hugging Face's `tf_model.h5`, which has `config.json` beside it."""
    config = d2v.Data2VecVisionConfig.from_pretrained(path.parent)
    weights = {name: torch.from_numpy(value) for name, value in read_h5(path).items()}
    model_class: type[VisionPreTrainedModel] = d2v.Data2VecVisionModel
    if "classifier.weight" in weights:
        model_class = d2v.Data2VecVisionForImageClassification
    elif "decode_head.classifier.weight" in weights:
        model_class = d2v.Data2VecVisionForSemanticSegmentation
    return model_class(config), weights, (), ()


def load(model: PreTrainedModel, weights: Weights, table: Table, left_out: Table) -> Counter[str]:
    """Load a model, each weight into its place; returns how many were left out, by what they are."""
    own, base, found = model.state_dict(), model.base_model_prefix + ".", {}
    counts: Counter[str] = Counter()
    for key, value in weights.items():
        if what := next((what for pattern, what in left_out if re.match(pattern, key)), None):
            counts[what] += 1
            continue
        ours = rename(rename(key, table), model.renames, to_ours=True)
        name = next((n for n in (ours, base + ours, ours.removeprefix(base)) if n in own), None)
        if name is None or name in found:
            raise InputError(f"{key} is a weight that {type(model).__name__} has no place for")
        if value.shape != own[name].shape:
            raise InputError(f"{key} has shape {tuple(value.shape)}; should be {tuple(own[name].shape)}")
        found[name] = value.to(own[name].dtype)
    for name in sorted(own.keys() - found.keys()):
        if not name.endswith("num_batches_tracked"):  # which TensorFlow does not count
            raise InputError(f"has no weight for {rename(name, model.renames)} of {type(model).__name__}")
    model.load_state_dict(found, strict=False)
    return counts


def read(path: Path) -> tuple[PreTrainedModel, Counter[str]]:
    """The model in a checkpoint, and how much of it was left out."""
    if not path.is_file():
        raise InputError("no such file")
    if path.suffix == ".h5":
        original = tensorflow(path)
    else:
        weights, config = read_pickle(path)
        kinds = {"sentence_encoder.": text, "patch_embed.": vision, "feature_extractor.": audio}
        kind = next((kind for piece, kind in kinds.items() if any(piece in key for key in weights)), None)
        if kind is None:
            raise InputError("neither speech, language nor images of data2vec; 2.0 is another architecture")
        try:
            original = kind(weights, config)
        except KeyError as error:
            raise InputError(f"has no weight {error}") from error
    return original[0], load(*original)


def write_vocabulary(dictionary: Path, size: int, out: Path) -> None:
    """Write the tokenizer of a CTC model by fairseq's dictionary, which has a letter and its count a line."""
    try:
        letters = [line.rpartition(" ")[0] for line in dictionary.read_text("utf-8").rstrip("\n").split("\n")]
    except (OSError, ValueError) as error:
        raise InputError(f"{dictionary}: not a text file that can be read; should be fairseq's dict.ltr.txt") from error
    # fairseq puts <s>, <pad>, </s>, <unk> first, and <s>, number 0, is its blank (fairseq/criterions/ctc.py). Hugging
    # Face's blank is <pad>: these two change places.
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *letters])}
    if len(vocab) != size:
        raise InputError(f"{dictionary}: {len(vocab)} tokens with fairseq's own four; the checkpoint has {size}")
    write_json(out / "vocab.json", vocab)
    (out / "tokenizer_config.json").unlink(missing_ok=True)
    CTCTokenizer.from_pretrained(out).save_pretrained(out)  # sees which case the letters are in


def convert(source: str | Path, out: str | Path, dictionary: str | Path | None = None) -> None:
    """Convert a checkpoint, and print what it is and what of it was not converted.

    Args:
        source: file of fairseq (.pt), BEiT (.pth) or TensorFlow (.h5).
        out: folder to write.
        dictionary: fairseq's `dict.ltr.txt` of a CTC model; by default the one beside the source.
    """
    source, out = Path(source), Path(out)
    beside = source.with_name("dict.ltr.txt")
    try:
        model, left_out = read(source)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{source}: {type(model).__name__}, {size / 1e6:.1f} million parameters")
    for what, number in left_out.items():
        print(f"left out: {what} ({number})")
    model.save_pretrained(out)

    if isinstance(model.config, d2v.Data2VecAudioConfig):
        AudioFeatureExtractor().save_pretrained(out)
    elif isinstance(model.config, d2v.Data2VecTextConfig):
        print("no tokenizer written: the released models have RoBERTa's")
    elif (source.parent / "preprocessor_config.json").is_file():
        ImageProcessor.from_pretrained(source.parent).save_pretrained(out)
    elif isinstance(model.config, d2v.Data2VecVisionConfig):
        # Normalises by 0.5, as fine-tuning did; pretraining did by ImageNet's statistics.
        height, width = sides(model.config.image_size)
        ImageProcessor(size={"height": height, "width": width}).save_pretrained(out)
    if isinstance(model, d2v.Data2VecAudioForCTC):
        if dictionary is None and not beside.is_file():
            print("no vocabulary written: --dict should name fairseq's dict.ltr.txt")
        else:
            write_vocabulary(Path(dictionary or beside), model.config.vocab_size, out)


def command_line() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser("python -m d2v.convert", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=given_path, help="file of fairseq (.pt), BEiT (.pth) or TensorFlow (.h5)")
    parser.add_argument("out", type=given_path, help="folder to write")
    parser.add_argument(
        "--dict", type=given_path, help="fairseq's dict.ltr.txt of a CTC model; by default the one beside the source"
    )
    return parser


def main(args: list[str] | None = None) -> None:
    """The command line; exit code 2 for bad input."""
    options = command_line().parse_args(args)
    try:
        convert(options.source, options.out, options.dict)
    except (InputError, OSError) as error:
        exit_with(2, f"error: {error}")


if __name__ == "__main__":
    main()
