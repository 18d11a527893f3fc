"""Masks that are a function of a row's seed, and targets that need no teacher."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.fft import dct

from d2v.data.facts import collecting
from d2v.data.language_modeling import read_stream
from d2v.data.pretraining import (
    MaskedAudioData,
    MaskedImageData,
    MaskedTextData,
    fit_blocks,
    heard_clips,
    masked_clips,
    masked_images,
    masked_windows,
    mel_bands,
    mfcc,
    patches,
    text_masker,
)
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.image import ImageProcessor
from d2v.processors.text import Tokenizer
from d2v.training.teaching import Economy
from tests.helpers import make_job
from tests.test_configs import photo
from tests.tiny import flac, sentences, tones


def clips(count: int, *, seed: bool = True) -> list[dict]:
    rows = []
    for i in range(count):
        sound = {"bytes": flac(tones("abc ab" * (2 + i), i)), "path": None}
        rows.append({"audio": sound, "where": f"train, row {i}", "row": i} | ({"seed": (0, 3, i)} if seed else {}))
    return rows


def test_masks_of_speech_depend_on_the_row_alone():
    extractor, settings = AudioFeatureExtractor(), Data2VecAudioConfig()
    data = MaskedAudioData(crop_seconds=1.5)
    options = {"extractor": extractor, "data": data, "settings": settings}
    together = masked_clips(clips(3), auxiliary=True, **options)
    torch.rand(7)
    alone = masked_clips(clips(3)[1:2], auxiliary=True, **options)
    frames = alone["masked"].shape[1]
    assert frames == settings.frames(alone["lengths"][0]) and max(together["lengths"]) == 24_000
    assert torch.equal(together["masked"][1, :frames], alone["masked"][0])
    assert torch.equal(together["auxiliary"][1, :frames], alone["auxiliary"][0])
    for row, heard, samples in zip(together["masked"], together["auxiliary_at"], together["lengths"], strict=True):
        assert not row[settings.frames(samples) :].any() and row.any()
        assert heard.sum() == settings.frames(samples) and heard[: settings.frames(samples)].all()
    views = masked_clips(clips(3), auxiliary=True, views=2, **options)
    assert views["masked"].shape == views["auxiliary_at"].shape == (3, 2, *together["masked"].shape[1:])
    assert torch.equal(views["auxiliary_at"][:, 1], together["auxiliary_at"])
    held_out = [masked_clips(clips(3, seed=False), auxiliary=False, **options)["masked"] for _ in range(2)]
    assert torch.equal(*held_out) and "auxiliary" not in masked_clips(clips(1), auxiliary=False, **options)


def test_a_probe_hears_what_held_out_rows_are_evaluated_on():
    """And not whole recordings, of any length, of which the student has learnt parts."""
    extractor, data = AudioFeatureExtractor(), MaskedAudioData(crop_seconds=0.5)
    options = {"extractor": extractor, "data": data}
    heard = heard_clips(clips(3, seed=False), **options)
    evaluated = masked_clips(clips(3, seed=False), settings=Data2VecAudioConfig(), auxiliary=False, **options)
    assert heard.keys() == {"input_values", "attention_mask"} and heard["input_values"].shape == (3, 8_000)
    assert all(torch.equal(value, evaluated[name]) for name, value in heard.items())


def test_of_a_clip_shorter_than_a_span_some_is_masked():
    extractor, settings = AudioFeatureExtractor(), Data2VecAudioConfig()
    options = {"extractor": extractor, "settings": settings, "auxiliary": False}
    masked = masked_clips(clips(3), data=MaskedAudioData(crop_seconds=0.15), **options)["masked"]
    assert masked.shape == (3, 7) and masked.any(1).all() and not masked.all(1).any()


def test_half_of_speech_is_masked_in_spans():
    """fairseq's .65 in spans of 10 that may overlap covers about half (Baevski et al., 2020, section 4.2: 49 %)."""
    from d2v.data.image import seeded
    from d2v.models.masking import span_mask

    with seeded((1,)):
        masks = torch.cat([span_mask([749], 749, 0.65, 10, 1) for _ in range(50)])
    assert 0.46 < masks.float().mean() < 0.50
    runs = [len(run) for row in masks for run in "".join("x" if each else " " for each in row).split()]
    assert min(runs) == 10


@pytest.mark.parametrize("length", [1, 4])
def test_masks_of_text(length):
    texts = sentences(40, seed=0)
    tokenizer = Tokenizer.train(texts, 300)
    stream = read_stream([" ".join(texts)], tokenizer, documents=False)
    data = MaskedTextData(mask_share=0.15 if length == 1 else 0.35, mask_length=length)
    windows = [{"start": 50 * i, "first": 50 * i, "end": 50 * i + 50} for i in range(6)]
    rows = [window | {"row": i, "seed": (0, 1, i)} for i, window in enumerate(windows)]
    options = {"tokenizer": tokenizer, "stream": stream, "mask": text_masker(tokenizer, data)}
    batch = masked_windows(rows, **options)
    masked, whole, seen = batch["masked"], batch["input_ids"], batch["masked_ids"]
    assert masked.shape == whole.shape == seen.shape == (6, 52)
    assert torch.equal(whole[~masked], seen[~masked]) and not masked[:, [0, -1]].any()
    share = float(masked[:, 1:-1].float().mean())
    hidden = float((seen[masked] == tokenizer.mask_token_id).float().mean())
    if length == 1:
        assert share == pytest.approx(0.15, abs=0.03) and 0.55 < hidden < 0.98
    else:
        assert 0.25 < share < 0.36 and hidden == 1
        assert all(len(run) >= 4 for row in masked for run in "".join("x" if x else " " for x in row).split())
    again = masked_windows(rows[2:3], **options)
    assert torch.equal(again["masked_ids"][0], seen[2]) and torch.equal(again["masked"][0], masked[2])
    held_out = [masked_windows(windows[:2], **options)["masked_ids"] for _ in range(2)]
    assert torch.equal(*held_out)


def test_whole_words_are_masked_and_not_parts():
    texts = sentences(40, seed=0)
    tokenizer = Tokenizer.train(texts, 270)
    stream = read_stream([" ".join(texts)], tokenizer, documents=False)
    ids, starts = stream.ids[1:201], stream.starts[1:201]
    mask = text_masker(tokenizer, MaskedTextData(mask_share=0.3, whole_words=True))
    hidden = mask(ids, starts, (0, 1))[1]
    words = starts.cumsum()
    assert 0.2 < hidden.mean() < 0.4 and all(len({*hidden[words == word].tolist()}) == 1 for word in {*words.tolist()})
    apart = text_masker(tokenizer, MaskedTextData(mask_share=0.3))(ids, starts, (0, 1))[1]
    assert any(len({*apart[words == word].tolist()}) == 2 for word in {*words.tolist()})
    for data, views, what in (
        (MaskedTextData(mask_length=3, whole_words=True), 0, "data.mask_length 3"),
        (MaskedTextData(whole_words=True), 2, "economy.views 2"),
    ):
        with pytest.raises(InputError, match=f"data.whole_words does not go with {what}; add --data.whole_words false"):
            text_masker(tokenizer, data, views)


def test_mfccs_are_those_of_the_definition():
    """Of a clip whose frames differ enough that the floor of the variance does not count."""
    time = np.arange(32_000) / 16_000
    clip = torch.tensor(np.sin(2 * np.pi * 440 * time) * (time < 1) + np.sin(2 * np.pi * 3000 * time) * (time > 0.7))
    found = mfcc(clip, 16_000, 400, 320)
    assert found.shape == (Data2VecAudioConfig().frames(32_000), 20)
    frames = np.lib.stride_tricks.sliding_window_view(clip.numpy(), 400)[::320] * torch.hann_window(400).numpy()
    energy = np.abs(np.fft.rfft(frames, 512)) ** 2 @ mel_bands(16_000, 257, 40).numpy()
    expected = dct(np.log(energy + 1e-3 * energy.mean()), norm="ortho")[:, :20] * [2**0.5, *[1] * 19]
    expected -= expected.mean(0)
    np.testing.assert_allclose(found, expected / np.sqrt(expected.var(0) + 1e-2), rtol=1e-3, atol=1e-3)


def test_a_tone_is_loud_in_its_own_mel_band():
    """HTK's mel of 440 Hz is 549.6 of 2840; bands are 69.3 apart, so that the eighth (number 7) is at 554.2."""
    bands = mel_bands(16_000, 257, 40)
    assert int(bands[440 * 512 // 16_000].argmax()) == 7 and int(bands[3000 * 512 // 16_000].argmax()) in (26, 27)


def test_noise_far_below_the_sound_is_no_target():
    """The dither of a pause."""
    time = np.arange(32_000) / 16_000
    sound = sum(np.sin(2 * np.pi * f * time) for f in range(200, 3900, 130)) * (np.sin(9 * time) > 0)
    sound += np.random.default_rng(0).normal(0, 1e-3, 32_000)
    found = mfcc(torch.tensor(sound / sound.std()), 16_000, 400, 320)
    loud = torch.tensor(np.sin(9 * (np.arange(len(found)) * 320 + 200) / 16_000))
    assert found[:, 0].std() > 0.9 and found[loud < -0.3].std(0).max() < 0.02


def test_patches_are_normalised_pixels():
    pixels = torch.arange(2 * 3 * 9 * 8).float().reshape(2, 3, 9, 8)  # a row of pixels is left over
    found = patches(pixels, (4, 2))
    assert found.shape == (2, 8, 24)
    patch = pixels[1, :, 4:8, 2:4].flatten()  # of the second row, the second: number 5
    assert torch.allclose(found[1, 5], (patch - patch.mean()) / patch.std(), atol=1e-5)


@pytest.mark.parametrize("views", [0, 2])
def test_blocks_fit_into_a_small_grid(views, capsys):
    """The default, BEiT's 16 patches, is for 196: of 16 patches it masked nothing in three of four images."""
    rows = [{"image": photo("train", i)["image"], "where": f"train, row {i}", "row": i} for i in range(40)]
    config = SimpleNamespace(data=MaskedImageData(), economy=Economy(views=views))
    job, processor = replace(make_job(), config=config), ImageProcessor(size={"height": 64, "width": 64})
    with collecting() as facts:
        data = fit_blocks(job, (4, 4))
        assert fit_blocks(job, (14, 14)) == MaskedImageData()
    (fact,) = facts
    block = 6 if views else 5  # of what is seen, and half of what is masked
    assert data == MaskedImageData(mask_block=block)
    assert fact["line"] == f"masks: blocks of {block} patches, not 16, since 10 of 16 are masked (data.mask_block)"
    options = {"processor": processor, "augmented": None, "data": data, "grid": (4, 4), "views": views}
    counts = masked_images(rows, **options)["masked"].sum(-1).flatten().tolist()
    assert min(counts) >= (10 if views else 8) and max(counts) == 10
    few = masked_images(rows[:1], **options | {"data": MaskedImageData(mask_share=0.1, mask_block=1), "grid": (2, 2)})
    assert set(few["masked"].sum(-1).flatten().tolist()) == {1}  # and not round(0.4)


def test_shares_of_nothing_and_of_all_are_refused():
    for kind in (MaskedAudioData, MaskedTextData, MaskedImageData):
        for share in (0.0, 1.0):
            with pytest.raises(InputError, match="data.mask_share should be between 0 and 1"):
                kind(mask_share=share)
