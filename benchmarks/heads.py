"""The twelve heads at base size, here and in transformers, with batches as real data give them.

Weights are random and the same on both sides, contents are noise and labels random, since none of them changes the
time. What does change it is lengths: those below are quantiles of real data, each with its source.

Shapes: B batch, S samples, T frames or tokens, L labels, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

import d2v
from benchmarks.recipe import load_recipe
from d2v.hub import rename
from d2v.losses import IGNORE, cross_entropy
from d2v.processors.audio import AudioFeatureExtractor

Batch = dict[str, Tensor]
BATCHES = ("random", "grouped", "equal")
RATE = 16_000


@dataclass(frozen=True)
class Lengths:
    """How long the items of a data set are: values at shares of it, and where they come from."""

    unit: str
    source: str
    shares: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, shares: np.ndarray) -> list[float]:
        """The lengths below which these shares of the items lie."""
        return np.interp(shares, self.shares, self.values).tolist()


FIVE = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
COUNTED = "counted with a byte-level BPE of 16,000 trained on it, CoLA, EWT and XQuAD; special tokens included"
LIBRISPEECH = Lengths(
    "s",
    "LibriSpeech train-clean-100 at 0.9 to 1.1 of its speed (icefall's local/display_manifest_statistics.py)",
    (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999),
    (1.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16, 16),
)
KEYWORDS = Lengths("s", "Speech Commands, whose clips have a second each, but for a tenth", (0, 0.1, 1), (0.6, 1, 1))
COLA = Lengths("tokens", f"CoLA, train, {COUNTED}", FIVE, (4, 6, 9, 10, 13, 19, 49))
EWT = Lengths("tokens", f"UD English EWT, {COUNTED}", FIVE, (3, 4, 10, 17, 26, 46, 179))
SQUAD = Lengths("tokens", f"XQuAD, a part of SQuAD's validation, {COUNTED}", FIVE, (48, 95, 141, 172, 225, 331, 384))
CHOICES = Lengths("tokens", f"pairs of neighbouring sentences of EWT, {COUNTED}", FIVE, (15, 24, 34, 43, 55, 73, 128))


def constant(value: float, unit: str, source: str) -> Lengths:
    return Lengths(unit, source, (0, 1), (value, value))


@dataclass(frozen=True)
class Head:
    """A head by its recipe's name.

    Attributes:
        model: the class, called so on both sides.
        lengths: of items.
        rows: items of a batch.
        config: what differs from base size.
    """

    model: str
    lengths: Lengths
    rows: int
    config: dict[str, Any]


BLOCKS = constant(512, "tokens", "running text in blocks, as RoBERTa's pretraining has it")
HEADS = {
    "asr_ctc": Head("Data2VecAudioForCTC", LIBRISPEECH, 4, {}),
    "audio_classification": Head("Data2VecAudioForSequenceClassification", KEYWORDS, 16, {"num_labels": 12}),
    "audio_frame_classification": Head("Data2VecAudioForAudioFrameClassification", LIBRISPEECH, 4, {"num_labels": 2}),
    "speaker_verification": Head(
        "Data2VecAudioForXVector", constant(8, "s", "crops of the recipe's length"), 4, {"num_labels": 1211}
    ),
    "text_classification": Head("Data2VecTextForSequenceClassification", COLA, 32, {}),
    "token_classification": Head("Data2VecTextForTokenClassification", EWT, 32, {"num_labels": 17}),
    "question_answering": Head("Data2VecTextForQuestionAnswering", SQUAD, 8, {}),
    "multiple_choice": Head("Data2VecTextForMultipleChoice", CHOICES, 8, {}),
    "causal_lm": Head("Data2VecTextForCausalLM", BLOCKS, 2, {"is_decoder": True}),
    "masked_lm": Head("Data2VecTextForMaskedLM", BLOCKS, 2, {}),
    "image_classification": Head(
        "Data2VecVisionForImageClassification", constant(224, "pixels", "ImageNet's crops"), 8, {"num_labels": 1000}
    ),
    "semantic_segmentation": Head(
        "Data2VecVisionForSemanticSegmentation", constant(512, "pixels", "ADE20K's crops"), 2, {"num_labels": 150}
    ),
}
CHOICES_OF_A_QUESTION = 4
BASE = {
    "Audio": {},
    "Text": {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "Vision": {"use_relative_position_bias": True, "use_mean_pooling": True},
}
"""What the released base models have besides the defaults."""

TINY_ENCODER = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
TINY = {
    "Audio": TINY_ENCODER | {"conv_dim": (16,) * 7, "tdnn_dim": (16,) * 5, "xvector_output_dim": 16},
    "Text": TINY_ENCODER | {"vocab_size": 211},
    "Vision": TINY_ENCODER | {"out_indices": [2, 3, 4, 5], "auxiliary_channels": 16},
}
DROPOUTS = {
    "Audio": "hidden_dropout activation_dropout attention_dropout feat_proj_dropout final_dropout",
    "Text": "hidden_dropout_prob attention_probs_dropout_prob",
    "Vision": "hidden_dropout_prob attention_probs_dropout_prob drop_path_rate",
}
NO_CHANCE = {"layerdrop": 0.0, "mask_time_prob": 0.0, "mask_feature_prob": 0.0}
"""Of audio, always: with LayerDrop and masks each implementation would have another amount of work in each step."""


def kind_of(task: str) -> str:
    """Audio, Text or Vision."""
    return next(kind for kind in BASE if kind in HEADS[task].model)


def configuration(task: str, size: str, dropout: bool) -> dict[str, Any]:
    """What both configurations get; dropout as the recipe fine-tunes with it, or none."""
    kind, head = kind_of(task), HEADS[task]
    config = BASE[kind] | (TINY[kind] if size == "tiny" else {}) | head.config
    if kind == "Vision":
        config["image_size"] = side(task, size)
    names = DROPOUTS[kind].split()
    chosen = getattr(load_recipe(task), "FINE_TUNING", {})
    chances = {name: chosen[name] for name in names if name in chosen} if dropout else dict.fromkeys(names, 0.0)
    return config | chances | (NO_CHANCE if kind == "Audio" else {})


def lengths_at(task: str, size: str, shares: np.ndarray) -> list[float]:
    """Lengths of items at shares of the data; of tiny models a tenth, but not too short for a head."""
    least = {"Audio": 0.4, "Text": 4, "Vision": 32}[kind_of(task)]
    return [max(length / 10, least) if size == "tiny" else length for length in HEADS[task].lengths.at(shares)]


def side(task: str, size: str) -> int:
    """Pixels of an image's side."""
    return round(lengths_at(task, size, np.zeros(1))[0])


def models(task: str, size: str, dropout: bool, freeze: bool = False) -> list[nn.Module]:
    """The model of transformers with eager attention, with SDPA, and ours, with the same weights.

    Args:
        task: name of a head.
        size: base or tiny.
        dropout: as in fine-tuning, or none.
        freeze: the waveform front end.
    """
    name, config = HEADS[task].model, configuration(task, size, dropout)
    configs = f"Data2Vec{kind_of(task)}Config"
    torch.manual_seed(0)
    eager, sdpa = (
        getattr(transformers, name)(getattr(transformers, configs)(**config, attn_implementation=attention))
        for attention in ("eager", "sdpa")
    )
    weights = {key: value + 0.01 * torch.randn_like(value) for key, value in sdpa.named_parameters()}  # heads are 0
    sdpa.load_state_dict(sdpa.state_dict() | weights)
    eager.load_state_dict(sdpa.state_dict(), assign=True)  # in the same memory
    ours = getattr(d2v, name)(getattr(d2v, configs)(**config))
    renamed = {rename(key, ours.renames, to_ours=True): value for key, value in sdpa.state_dict().items()}
    ours.load_state_dict(ours.adapt_weights(renamed))
    for model in (eager, sdpa, ours) if freeze and kind_of(task) == "Audio" else ():
        model.freeze_feature_encoder()
    return [eager, sdpa, ours]


def batches_of(task: str, size: str, how: str, rows: int | None = None, lengths: Sequence[float] = ()) -> list[Batch]:
    """The batches that a round of steps takes.

    Args:
        task: name of a head.
        size: base or tiny.
        how: "random" has a batch that is like the data set, the middle of each of as many equal shares; "grouped" three
            such as sampling by length gives, of which each covers a fiftieth; "equal" one of the median length.
        rows: of a batch; by default the head's.
        lengths: of a batch's items, in place of all this.
    """
    head, rng = HEADS[task], np.random.default_rng(0)
    rows = rows or (2 if size == "tiny" else head.rows)
    items = rows * (CHOICES_OF_A_QUESTION if task == "multiple_choice" else 1)
    within = (np.arange(items) + 0.5) / items
    shares = {"random": [within], "equal": [np.full(items, 0.5)]}
    shares["grouped"] = [middle + (within - 0.5) / 50 for middle in (1 / 6, 1 / 2, 5 / 6)]
    wanted = [list(lengths)] if len(lengths) else [lengths_at(task, size, each) for each in shares[how]]
    return [batch_of(task, size, each, rng) for each in wanted]


def single(task: str, size: str) -> Batch:
    """A batch without padding, on which both sides have to agree."""
    length = min(lengths_at(task, size, np.array([0.5]))[0], 3 if kind_of(task) == "Audio" else 64)
    items = CHOICES_OF_A_QUESTION if task == "multiple_choice" else 1
    return batch_of(task, size, [length] * items, np.random.default_rng(1))


def batch_of(task: str, size: str, lengths: Sequence[float], rng: np.random.Generator) -> Batch:
    """Items of these lengths, padded to the longest, with labels as both sides take them."""
    make = {"Audio": sounds, "Text": texts, "Vision": images}[kind_of(task)]
    return make(task, configuration(task, size, False), lengths, rng)


def sounds(task: str, config: dict[str, Any], lengths: Sequence[float], rng: np.random.Generator) -> Batch:
    """`input_values` and `attention_mask` (B, S), `labels` (B, L), (B,) or one-hot (B, T, C)."""
    clips = [rng.standard_normal(round(RATE * length), np.float32) for length in lengths]
    batch: Batch = AudioFeatureExtractor()(clips)
    if task == "asr_ctc":  # 14 characters a second: 2.7 words (9.4 million in LibriSpeech's 960 h), of five with space
        of_clips = [torch.from_numpy(rng.integers(1, 32, max(1, round(14 * length)))) for length in lengths]
        return batch | {"labels": nn.utils.rnn.pad_sequence(of_clips, True, IGNORE)}
    classes = config["num_labels"]
    if task == "audio_frame_classification":
        frames = d2v.Data2VecAudioConfig().frames(batch["input_values"].shape[1])
        present = torch.from_numpy(rng.integers(0, classes, (len(clips), frames)))
        return batch | {"labels": nn.functional.one_hot(present, classes)}
    return batch | {"labels": torch.from_numpy(rng.integers(0, classes, len(clips)))}


def texts(task: str, config: dict[str, Any], lengths: Sequence[float], rng: np.random.Generator) -> Batch:
    """`input_ids` and `attention_mask` (B, T), or (B, choices, T), and the labels of the task."""
    sizes = torch.tensor([round(length) for length in lengths])
    real = torch.arange(int(sizes.max())) < sizes[:, None]
    ids = torch.from_numpy(rng.integers(3, config["vocab_size"], tuple(real.shape))).masked_fill(~real, 1)
    batch = {"input_ids": ids, "attention_mask": real.long()}
    if task == "multiple_choice":
        batch = {key: value.unflatten(0, (-1, CHOICES_OF_A_QUESTION)) for key, value in batch.items()}
    rows = len(batch["input_ids"])
    if task == "question_answering":
        return batch | dict.fromkeys(("start_positions", "end_positions"), sizes // 2)
    if task in ("causal_lm", "masked_lm"):
        share = 1.0 if task == "causal_lm" else 0.15
        return batch | {"labels": ids.masked_fill(~real | (torch.from_numpy(rng.random(ids.shape)) > share), IGNORE)}
    if task == "token_classification":
        labels = torch.from_numpy(rng.integers(0, config["num_labels"], tuple(ids.shape)))
        return batch | {"labels": labels.masked_fill(~real, IGNORE)}
    return batch | {"labels": torch.from_numpy(rng.integers(0, 2, rows))}


def images(task: str, config: dict[str, Any], lengths: Sequence[float], rng: np.random.Generator) -> Batch:
    """`pixel_values` (B, 3, height, width), `labels` (B,) or (B, height, width)."""
    pixels, rows = config["image_size"], len(lengths)
    shape = (rows, pixels, pixels) if task == "semantic_segmentation" else (rows,)
    labels = torch.from_numpy(rng.integers(0, config["num_labels"], shape))
    return {
        "pixel_values": torch.from_numpy(rng.standard_normal((rows, 3, pixels, pixels), np.float32)),
        "labels": labels,
    }


def loss_of(task: str, model: nn.Module, batch: Batch) -> Tensor:
    """The loss that training takes; of masked tokens ours computes logits where they count, as its recipe does."""
    if task == "masked_lm" and isinstance(model, d2v.Data2VecTextForMaskedLM):
        at = batch["labels"] != IGNORE
        logits = model(batch["input_ids"], batch["attention_mask"], logits_at=at).logits
        total, count = cross_entropy(logits, batch["labels"][at])
        return total / count
    return model(**batch).loss


def unlabelled(batch: Batch) -> Batch:
    """The batch as inference has it."""
    labels = ("labels", "start_positions", "end_positions")
    return {key: value for key, value in batch.items() if key not in labels}
