"""The small models that come with the package: what they were pretrained on, and that they open everywhere."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import d2v
import d2v.auto
from benchmarks.recipe import RECIPES, load_recipe
from d2v.cli import parse
from d2v.demo import images, speech, text
from d2v.demo.docstrings import sentences
from d2v.hub import PACKAGED, load_config, local_folder
from d2v.pretrained import read_weights
from tests.helpers import ROOT

RECIPES_OF = {
    "audio": ["asr_ctc", "audio_classification", "audio_frame_classification", "speaker_verification"],
    "text": [
        "text_classification",
        "token_classification",
        "question_answering",
        "multiple_choice",
        "causal_lm",
        "masked_lm",
    ],
    "vision": ["image_classification", "semantic_segmentation"],
}
MODALITY = {recipe: modality for modality, recipes in RECIPES_OF.items() for recipe in recipes}


FROM_SCRATCH = {
    "causal_lm",
    "multiple_choice",
    "semantic_segmentation",
    "speaker_verification",
    "text_classification",
}
"""Demos of other models, which the small one did not beat within their minutes, see recipes/README.md."""


@pytest.mark.parametrize("name", MODALITY)
def test_small_is_the_model_of_a_recipe_s_modality_and_its_demo_begins_with_it(name, tmp_path):
    config, demo = load_recipe(name).Config, RECIPES / f"configs/{name}/demo.yaml"
    begun = None if name in FROM_SCRATCH else f"small/{MODALITY[name]}"
    assert parse(config, [], demo=demo).model == begun
    assert parse(config, ["--model", "none"], demo=demo).model is None
    assert parse(config, ["--data.path", str(tmp_path)], demo=demo).model is None
    assert parse(config, ["--data.path", str(tmp_path), "--model", "small"]).model == f"small/{MODALITY[name]}"
    assert parse(config, ["--model", "./small"], demo=demo).model == "./small"


@pytest.mark.parametrize("name", [name for name in MODALITY if name not in FROM_SCRATCH])
def test_a_demo_from_random_weights_is_of_the_same_sizes(name):
    """So that `--model none` shows what pretraining earns, and `arch` changes nothing of a pretrained model's shape."""
    arch = parse(load_recipe(name).Config, [], demo=RECIPES / f"configs/{name}/demo.yaml").arch
    settings = load_config(f"small/{MODALITY[name]}")
    sizes = [key for key in arch if re.search(r"size$|^num_|^conv_|positions|^use_.*position", key)]
    assert len(sizes) >= 4
    for key in sizes:
        assert settings[key] == arch[key], key


@pytest.mark.parametrize("source", PACKAGED)
def test_it_opens_here_and_in_transformers(source):
    import transformers

    folder = local_folder(source)
    ours, theirs = (
        d2v.auto.from_pretrained(source).eval(),
        transformers.AutoModel.from_pretrained(folder).float().eval(),
    )
    inputs = {
        "audio": {"input_values": torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))},
        "text": {"input_ids": torch.arange(5, 25)[None]},
        "vision": {"pixel_values": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))},
    }[source.partition("/")[2]]
    with torch.inference_mode():
        a, b = ours(**inputs).last_hidden_state, theirs(**inputs).last_hidden_state
    assert torch.isfinite(a).all() and (a - b).abs().max() < 1e-3 * b.abs().max()
    assert a.std(dim=1).min() > 0  # positions differ
    weights = read_weights(source)
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
    card = (folder / "README.md").read_text("utf-8")
    assert "pretrained" in card and "licen" in card


def test_no_test_voice_was_heard():
    variants = {voice.partition("+")[2] for voice in speech.TRAIN_VOICES} | set(speech.TRAIN_SPEAKERS)
    assert variants.isdisjoint({voice.partition("+")[2] for voice in speech.TEST_VOICES} | set(speech.TEST_SPEAKERS))


def test_narration_has_longer_texts_than_any_demo(monkeypatch):
    """Demos say one to four words; a sentence has six or more, a row of words five or more."""
    said = []

    def speak(text, voice, **options):
        said.append(text)
        assert voice in {*speech.TRAIN_VOICES, *(f"en-us+{name}" for name in speech.TRAIN_SPEAKERS)}
        return np.sin(np.arange(40_000) / 9).astype(np.float32)

    monkeypatch.setattr(speech, "speak", speak)
    monkeypatch.setattr(speech, "documentation_paragraphs", lambda: ["The quick brown fox jumps over it. Not this."])
    rows = list(speech._narration("train", 60, np.random.default_rng(0)))
    assert len(rows) == 60 and len({row["speaker"] for row in rows}) == 36
    assert {len(text.split()) for text in said} == {5, 6, 7, 8}
    assert any("quick" in text for text in said) and all("Not this" not in text for text in said)


def test_no_test_digit_was_seen():
    seen = {image["bytes"] for rows in images.pictures(_sizes=(3, 2)).values() for image in rows["image"]}
    digits, scenes = images.digits(), images.scenes(_sizes=(1, 1, 20))
    assert seen >= {image["bytes"] for image in digits["train"]["image"]}
    assert seen.isdisjoint(image["bytes"] for image in digits["test"]["image"])
    assert seen.isdisjoint(image["bytes"] for image in scenes["test"]["image"])
    made = images.pictures(_sizes=(3, 2))["train"]["image"][0]["bytes"]
    assert Image.open(io.BytesIO(made)).size == (64, 64)


@pytest.mark.slow  # ten seconds to read all of the standard library
def test_no_test_sentence_was_read():
    read = {sentence for paragraph in text.documentation_paragraphs() for sentence in sentences(paragraph)}
    plain = {" ".join(word for word, _ in text.strip_words(paragraph)) for paragraph in text.documentation_paragraphs()}
    tested = {
        "text": [row["text"] for row in text.docs_text()["test"]],
        "classification": [row["text"] for row in text.docs_classification()["test"]],
        "questions": [row["context"].partition(". ")[2] for row in text.docs_questions()["test"]],
        "next": [row[key] for row in text.docs_next()["test"] for key in ("sent1", *(f"ending{i}" for i in range(4)))],
    }
    for name, texts in tested.items():
        assert len(texts) > 100 and read.isdisjoint(part for each in texts for part in sentences(each)), name
    assert plain.isdisjoint(" ".join(row["tokens"]) for row in text.docs_tagging()["test"])
    assert len(read) > 10_000


def test_the_small_models_are_made_by_a_documented_command():
    page = (ROOT / "benchmarks/README.md").read_text("utf-8")
    for source in PACKAGED:
        assert f"python -m benchmarks.small {source.removeprefix('small/')}" in page
