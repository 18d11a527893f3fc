"""Every YAML of every recipe: it loads strictly, its header's command works, it trains on data like those it names."""

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import d2v
from benchmarks.recipe import load_recipe
from d2v.cli import parse
from d2v.data.image import ImageData
from d2v.data.sampler import LengthBatches, deal
from d2v.data.segmentation import SegmentationData
from d2v.data.text import TextData
from d2v.demo.images import png
from d2v.hub import PACKAGED
from d2v.training.optim import lr_scale
from tests.helpers import PRETRAINING, ROOT, parse_command, tiny_reader, tiny_recogniser, tiny_viewer
from tests.recipes.common import without_pictures
from tests.tiny import TINY_AUDIO, TINY_TEXT, TINY_VISION, flac, name_splits, sentences, texts, tones

PATHS = [path for path in sorted(ROOT.glob("recipes/configs/**/*.yaml")) if path.parent.name != "accelerate"]
CONFIGS = {f"{path.parent.name}-{path.stem}": path for path in PATHS}
EVERY_CONFIG = pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)
# Each trains as another one does: librispeech_10m or 960h, mnli, rte or cola.
ALIKE = {f"librispeech_{each}" for each in ("1h", "10h", "100h")} | {"mrpc", "qnli", "qqp", "sst2", "wnli"}


def commands(path: Path) -> list[str]:
    """The commands of a YAML's header: indented lines; one that begins with an option says what to add to the first."""
    lines = [line[1:].strip() for line in path.read_text("utf-8").splitlines() if line.startswith("#   ")]
    return [line if line.startswith("accelerate") else f"{lines[0]} {line}" for line in lines]


@EVERY_CONFIG
def test_header(path):
    found = commands(path)
    assert found, "no command"
    for command in found:
        name, config = parse_command(command)
        assert name == path.parent.name
        assert f"--config recipes/configs/{name}/{path.name}" in command or path.stem == "demo"
        alone = parse(load_recipe(name).Config, ["--config", str(path)])
        assert (config.model, config.arch, config.optim) == (alone.model, alone.arch, alone.optim)
    assert re.search(r"^# Source: ", path.read_text("utf-8"), re.MULTILINE)


@EVERY_CONFIG
def test_a_misspelt_key_is_refused(path, tmp_path):
    (tmp_path / "wrong.yaml").write_text(path.read_text("utf-8") + "  misspelt: 1\n", "utf-8")
    with pytest.raises(ValueError, match="misspelt"):
        parse(load_recipe(path.parent.name).Config, ["--config", str(tmp_path / "wrong.yaml")])


KINDS = {"audio": d2v.Data2VecAudioConfig, "text": d2v.Data2VecTextConfig, "vision": d2v.Data2VecVisionConfig}
OTHERWISE = {"vocab_size", "max_position_embeddings", "use_mask_token"}
"""What a new vocabulary decides, and how much room there is; nothing that is computed."""


@EVERY_CONFIG
def test_random_weights_are_of_the_small_models_sizes(path):
    """So that `--model none` is a comparison: the same architecture and dropout."""
    name, config = path.parent.name, parse(load_recipe(path.parent.name).Config, ["--config", str(path)])
    if not str(config.model).startswith("small/"):
        return
    kind, chosen = KINDS[config.data.modality], getattr(load_recipe(name), "FINE_TUNING", {}) | config.arch
    stored = json.loads((ROOT / "d2v" / config.model / "config.json").read_text("utf-8"))
    derived = ("model_type", "architectures", "dtype", "label2id")
    small = {key: value for key, value in stored.items() if key not in derived}
    new, begun = kind(**chosen).to_dict(), kind(**small | chosen).to_dict()
    assert {key for key in new if new[key] != begun[key]} <= OTHERWISE


SPEAKERS = ["george", "jackson", "theo", "yweweler"]  # of the Free Spoken Digit Dataset


def speech(split: str, i: int) -> dict:
    """A row with the columns that recipes for speech look for by default."""
    (text,) = texts(1, seed=i)
    sound = {"bytes": flac(tones(text, seed=i)), "path": f"{split}-{i}.flac"}
    turns = [{"start": 0.0, "end": len(text) / 10, "speaker": name, "speaker_slot": i} for i, name in enumerate("ab")]
    labels = {"label": "ab"[i % 2], "labels": ["ab"[i % 2]], "digit": i % 2}
    return {"audio": sound, "text": text.upper(), "speaker": SPEAKERS[i % 4], "turns": turns} | labels


def librispeech(split: str, i: int) -> dict:
    """A row with the columns of LibriSpeech on the hub."""
    numbers = {"speaker_id": 100 + i, "chapter_id": 1000 + i, "id": f"{100 + i}-{1000 + i}-0000"}
    return {"file": f"{split}-{i}.flac"} | speech(split, i) | numbers


def tagged(split: str, i: int) -> dict:
    """A row with the columns of Universal Dependencies and of CoNLL-2003."""
    words = sentences(1, seed=i)[0].split()
    kinds = {"tags": ["B-NP", "I-NP"], "ner_tags": ["B-PER", "O"], "upos": ["DET", "NOUN"]}
    return {"id": f"{split}-{i}", "tokens": words} | {
        name: [tags[j % 2] for j in range(7)] for name, tags in kinds.items()
    }


def squad(split: str, i: int) -> dict:
    """A row with the columns of SQuAD."""
    (context,) = sentences(1, seed=i)
    answers = {"text": ["the"], "answer_start": [0]}
    return {"id": f"{split}-{i}", "title": "", "context": context, "question": "who sees?", "answers": answers}


def squad_v2(split: str, i: int) -> dict:
    """The same, of which every other has no answer."""
    return squad(split, i) | ({"answers": {"text": [], "answer_start": []}} if i % 2 else {})


def text(split: str, i: int) -> dict:
    """A row with the columns that recipes for text look for by default, and those of sets given as a folder."""
    (sentence,) = sentences(1, seed=i)
    return {"id": f"{split}-{i}", "text": sentence, "sentence": sentence, "label": i % 2, "idx": i}


def choices(split: str, i: int) -> dict:
    """A row with the columns of SWAG, and the number of the right ending."""
    first, second, *endings = sentences(6, seed=i)
    row = {f"ending{j}": ending for j, ending in enumerate(endings)}
    return row | {"startphrase": first, "sent1": first, "sent2": second, "label": i % 4}


def glue(*columns: str, value: bool = False) -> Callable[[str, int], dict]:
    """What makes a row of a task of GLUE's: these columns of text, the label (of test -1), the number."""

    def row(split: str, i: int) -> dict:
        label = -1 if split.startswith("test") else i % 2
        texts = dict(zip(columns, sentences(len(columns), seed=i), strict=True))
        return texts | {"label": float(label) if value else label, "idx": i}

    return row


def photo(split: str, i: int) -> dict:
    """A row with the columns of ImageNet and of CIFAR-10."""
    noise = np.random.default_rng(i).integers(0, 256, (32, 40, 3), np.uint8)
    return {"image": {"bytes": png(Image.fromarray(noise)), "path": f"{split}-{i}.png"}, "label": i % 2}


def scene(split: str, i: int) -> dict:
    """A row with the columns of CamVid and of ADE20K."""
    labels = Image.fromarray(np.array([[0, 1, 2], [1, 1, 255]], np.uint8)).resize((40, 32), Image.Resampling.NEAREST)
    label_map = {"bytes": png(labels), "path": f"{split}-{i}.png"}
    return {"image": photo(split, i)["image"], "annotation": label_map}


USUAL = ["train", "validation", "test"]
LIBRISPEECH_SPLITS = (
    "train.clean.100 train.clean.360 train.other.500 validation.clean validation.other test.clean test.other"
)
MNLI_SPLITS = "train validation_matched validation_mismatched test_matched test_mismatched"
SPEECH_RECIPES = ["asr_ctc", "audio_classification", "audio_frame_classification", "speaker_verification"]
# By data.path, or the recipe of data that are given as a folder; then by data.name: what makes a row, and the splits.
SOURCES = {
    "openslr/librispeech_asr": {"all": (librispeech, LIBRISPEECH_SPLITS.split())},
    "nyu-mll/glue": {
        "cola": (glue("sentence"), USUAL),
        "sst2": (glue("sentence"), USUAL),
        "mrpc": (glue("sentence1", "sentence2"), USUAL),
        "stsb": (glue("sentence1", "sentence2", value=True), USUAL),
        "qqp": (glue("question1", "question2"), USUAL),
        "mnli": (glue("premise", "hypothesis"), MNLI_SPLITS.split()),
        "qnli": (glue("question", "sentence"), USUAL),
        "rte": (glue("sentence1", "sentence2"), USUAL),
        "wnli": (glue("sentence1", "sentence2"), USUAL),
    },
    "ILSVRC/imagenet-1k": {None: (photo, USUAL)},
    "allenai/swag": {"regular": (choices, ["train", "validation"])},
    "Salesforce/wikitext": {"wikitext-103-raw-v1": (text, USUAL)},
    "rajpurkar/squad": {None: (squad, ["train", "validation"])},
    "rajpurkar/squad_v2": {None: (squad_v2, ["train", "validation"])},
    **{recipe: {None: (speech, USUAL)} for recipe in SPEECH_RECIPES},
    "text_classification": {None: (text, [*USUAL, "out_of_domain"])},
    "token_classification": {None: (tagged, USUAL)},
    "question_answering": {None: (squad, USUAL)},
    "multiple_choice": {None: (choices, USUAL)},
    "causal_lm": {None: (text, USUAL)},
    "masked_lm": {None: (text, USUAL)},
    "image_classification": {None: (photo, USUAL)},
    "pretrain_audio": {None: (speech, USUAL)},
    "pretrain_text": {None: (text, USUAL)},
    "pretrain_vision": {None: (photo, USUAL)},
    "semantic_segmentation": {None: (scene, [*USUAL[:2], "training"])},
}


def write_like(recipe: str, source: str | None, name: str | None, folder: Path) -> None:
    """A folder that `datasets` reads as it reads the hub's: the same columns, configuration and splits, few rows."""
    import datasets

    row, splits = SOURCES[source or recipe][name]
    folder.mkdir()
    for split in splits:
        table = datasets.Dataset.from_list([row(split, i) for i in range(8)])
        if "audio" in table.column_names:
            table = table.cast_column("audio", datasets.Audio(sampling_rate=16_000))
        for pictures in {"image", "annotation"} & set(table.column_names):
            table = table.cast_column(pictures, datasets.Image())
        table.to_parquet(folder / f"{split}.parquet")
    name_splits(folder, splits, name=name or "default")


@pytest.fixture
def fresh_accelerator():
    from accelerate.state import AcceleratorState, GradientState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)  # the next run may ask for another precision
    GradientState._reset_state()


@EVERY_CONFIG
def test_an_update_is_a_set_of_rows(path):
    """The rows of each update and its learning rate are the same on 1, 2 and 8 processes, for any number of pieces."""
    config = parse(load_recipe(path.parent.name).Config, ["--config", str(path)])
    bound = config.data.max_size or config.data.batch_size
    lengths = np.random.default_rng(0).uniform(
        bound / 100, bound / 2, 6 * config.data.batch_size * config.optim.batches
    )
    lengths = lengths.round(2).tolist() if config.data.max_size else [1] * len(lengths)
    sampler = LengthBatches(
        lengths,
        max_rows=config.data.batch_size,
        max_length=config.data.max_size,
        seed=config.run.seed,
        batches=config.optim.batches,
    )
    total = config.run.max_steps or config.run.epochs * len(sampler)
    assert lr_scale(total - 1, total, config.optim) <= 1 and total > 0
    bounds = (lengths, config.data.batch_size, config.data.max_size)
    for update in islice(sampler.updates(1), 3):
        rows = sorted(row for batch in update for row in batch)
        for processes in (1, 2, 8):
            for pieces in (1, 3):
                dealt = deal(update, *bounds, processes=processes, pieces=pieces)
                assert sorted(row for piece in dealt for share in piece for row in share) == rows
        # Who computes it does not come into an update's size either: as many rows as the configuration says.
        most = config.data.batch_size * config.optim.batches
        assert len(rows) <= most and (config.data.max_size is not None or len(rows) == most)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in ALIKE else ()) for path in CONFIGS.values()],
    ids=CONFIGS,
)
def test_two_updates(path, tmp_path, capsys, fresh_accelerator):
    recipe = load_recipe(path.parent.name)
    asked = parse(recipe.Config, ["--config", str(path)])
    released = None if asked.model in PACKAGED else asked.model  # those that come with the package are small enough
    args = ["--config", str(path), "--run.max_steps", "2", "--run.eval_every", "2", "--run.tracker", "null"]
    # `datasets` keeps what it read by the name and card of the folder: the name has to be of this configuration alone.
    folder = tmp_path / "_".join((path.parent.name, path.stem))
    args += ["--run.out", str(tmp_path / "run"), "--data.path", str(folder), "--data.workers", "0"]
    if released and isinstance(asked.data, TextData):
        args += ["--model", str(tiny_reader(tmp_path / "model"))]
    elif released and isinstance(asked.data, SegmentationData):
        args += ["--model", str(tiny_viewer(tmp_path / "model", num_hidden_layers=24, hidden_size=16))]
        args += ["--arch.image_size", "64", "--data.crop", "[64,64]", "--data.size", "64", "--data.window", "64"]
        args += ["--data.stride", "43"]
    elif isinstance(asked.data, SegmentationData):
        args += ["--data.names", "[sky,road,tree]"]
        if path.stem == "camvid":
            args += ["--arch.image_size", "[36,48]", "--data.crop", "[36,48]"]
    elif released and isinstance(asked.data, ImageData):
        args += ["--model", str(tiny_viewer(tmp_path / "model"))]
    elif released:
        args += ["--model", str(tiny_recogniser(tmp_path / "model"))]
        (tmp_path / "model" / "vocab.json").unlink()  # the released models have heard, but never written
    write_like(path.parent.name, asked.data.path, asked.data.name, folder)
    files = {file.name for file in folder.iterdir()}
    splits = [*asked.data.train_split.split("+"), asked.data.validation_split]
    assert {f"{split}.parquet" for split in splits} <= files
    scored = "test" if f"{asked.data.test_split}.parquet" in files else "validation"  # not all tests are public

    if (pretraining := path.parent.name in PRETRAINING) and path.stem == "base":
        sizes = {"audio": TINY_AUDIO, "text": TINY_TEXT, "vision": TINY_VISION}[
            path.parent.name.removeprefix("pretrain_")
        ]
        args += [f"--arch.{key}={json.dumps(value)}" for key, value in sizes.items()] + ["--teacher.layers=2"]
        args += ["--data.max_length=16", "--data.vocab_size=290"] if isinstance(asked.data, TextData) else []
    elif not asked.model and asked.arch.get("hidden_size", 0) > 256:
        args += ["--arch.hidden_size", "64", "--arch.intermediate_size", "128"]
    args += ["--run.precision", "fp32"]  # bf16 takes minutes on a processor that has to emulate it

    scored = "validation" if pretraining else scored
    windows = path.parent.name.endswith(("_lm", "_text"))  # of all rows' text; here it fits into one
    args += ["--optim.batches", "1"] if windows or asked.optim.batches > 8 else []  # eight rows are too few for more

    with without_pictures():
        results = recipe.main(parse(recipe.Config, args))
    # Rows; where speakers are verified, trials: as many of one of the four speakers as of two, here 4 (held out: 2).
    examples = 4 if getattr(asked.data, "held_out_speakers", []) else 1 if windows else 8
    if not (pretraining and windows):
        assert results["examples"] == examples
    assert results["split"] == scored
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in log] == [2, 2] and log[0]["skipped"] == 0 and log[0]["loss"] > 0
