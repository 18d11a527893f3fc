"""What a student sees of a row: its masks, and targets that need no teacher.

Masks come from a row's seed, and of held-out rows from their number, so that they do not depend on what else is in a
batch, on the number of processes, or on whether the run was stopped before.

Shapes: B batch, S samples, T frames or tokens, P patches, M views.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from d2v.config import Job, at_least
from d2v.data.audio import AudioData, clip_batch
from d2v.data.facts import note
from d2v.data.image import ImageData, load_images, seeded
from d2v.data.language_modeling import LanguageData, cut, masker
from d2v.data.text import token_batch
from d2v.errors import InputError
from d2v.losses import at_least_fp32
from d2v.models.audio import Data2VecAudioConfig
from d2v.models.masking import block_mask, seen_blocks, span_mask
from d2v.processors.audio import AudioFeatureExtractor
from d2v.processors.text import Tokenizer

EVALUATION = 0
"""Seeds the masks of held-out rows, whatever the run's seed."""

MEL_BINS = 40
MFCCS = 20


@dataclass
class MaskedAudioData(AudioData):
    """Data with sound; without a path the embedded demo.

    Attributes:
        crop_seconds: length of the random part that is heard of a longer clip, in seconds.
        mask_share: share of the frames that spans would cover if none overlapped.
        mask_length: number of frames of a span; with economy.views, of each span that is seen.
    """

    crop_seconds: float = 20.0
    mask_share: float = 0.65
    mask_length: int = 10

    def __post_init__(self):
        super().__post_init__()
        check_share("data.mask_share", self.mask_share)
        at_least(1, "data", self, ("mask_length",))


@dataclass
class MaskedTextData(LanguageData):
    """Data with running text; without a path the embedded demo.

    Attributes:
        mask_share: share of the tokens that are masked, or of the words.
        mask_length: number of tokens of a span; with spans all are `<mask>`, single tokens are as BERT's. With
            economy.views, of each span that is seen.
        whole_words: mask all tokens of a word together, which leaves no part of it to guess the rest from; of single
            tokens alone, and not of spans.
    """

    mask_share: float = 0.15
    mask_length: int = 1
    whole_words: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_share("data.mask_share", self.mask_share)
        at_least(1, "data", self, ("mask_length",))


@dataclass
class MaskedImageData(ImageData):
    """Data with images; without a path the embedded demo.

    Attributes:
        mask_share: share of the patches that are masked.
        mask_block: number of patches of the smallest block, on a small grid at most half of those that are masked; with
            economy.views, of each block that is seen.
    """

    mask_share: float = 0.6
    mask_block: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_share("data.mask_share", self.mask_share)
        at_least(1, "data", self, ("mask_block",))


def fit_blocks(job: Job, grid: tuple[int, int]) -> MaskedImageData:
    """The data's options with blocks that fit more than once into what a grid's masks hide, or leave; noted if smaller.

    Args:
        job: whose data have the options of `MaskedImageData`.
        grid: rows and columns of patches.
    """
    data, views = job.config.data, job.config.economy.views
    patches = grid[0] * grid[1]
    hidden = hidden_patches(data, grid)
    block = min(data.mask_block, max(patches - hidden if views else hidden // 2, 1))
    if block < data.mask_block:
        line = f"masks: blocks of {block} patches, not {data.mask_block}, since {hidden} of {patches} are masked"
        note(job, "smaller blocks", f"{line} (data.mask_block)", block=block, masked=hidden, of=patches)
    return replace(data, mask_block=block)


def hidden_patches(data: MaskedImageData, grid: tuple[int, int]) -> int:
    """How many patches of a grid are masked, at least one."""
    return max(round(data.mask_share * grid[0] * grid[1]), 1)


def check_share(name: str, share: float) -> None:
    """Raise InputError unless the share is between 0 and 1."""
    if not 0 < share < 1:
        raise InputError(f"{name} should be between 0 and 1, not {share}")


def with_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, of which those without a seed get one of their number."""
    return [{"seed": (EVALUATION, 0, row["row"])} | row for row in rows]


def masked_clips(
    rows: list[dict[str, Any]],
    *,
    extractor: AudioFeatureExtractor,
    data: MaskedAudioData,
    settings: Data2VecAudioConfig,
    auxiliary: bool,
    views: int = 0,
) -> dict[str, Any]:
    """A batch of random parts of clips, with `masked` (B, T) and, if asked for, their MFCCs as `auxiliary`.

    These are learnt at all frames, `auxiliary_at`: where a frame is seen, they keep the front end from hearing less
    and less, which would make its own targets easy.

    Args:
        rows: from `d2v.data.audio.clip_rows`.
        extractor: of the model.
        data: how much is heard and masked.
        settings: the model's.
        auxiliary: whether these are asked for.
        views: M masks of each row, (B, M, T), that leave spans unmasked; 0 for one that masks spans.
    """
    rows, batch = clip_batch(with_seeds(rows), extractor, data, crop_seconds=data.crop_seconds)
    masks = []
    for row, samples in zip(rows, batch["lengths"], strict=True):
        frames = settings.frames(samples)
        with seeded((*row["seed"], 2)):
            if views:
                masks.append(seen_parts(frames, data.mask_share, data.mask_length, views))
            else:
                span = min(data.mask_length, max(frames // 2, 1))  # of a short clip too some is masked, and some heard
                masks.append(span_mask([frames], frames, data.mask_share, span, 1).T)
    masked = pad_sequence(masks, batch_first=True).mT  # (B, M, T)
    batch["masked"] = masked if views else masked[:, 0]
    if auxiliary:
        window, hop = settings.shortest_clip, settings.inputs_to_logits_ratio
        clips = zip(batch["input_values"], batch["lengths"], strict=True)
        targets = [mfcc(clip[:length], extractor.sampling_rate, window, hop) for clip, length in clips]
        batch["auxiliary"] = pad_sequence(targets, batch_first=True)  # (B, T, MFCCS)
        heard = pad_sequence([torch.ones(len(each), dtype=torch.bool) for each in targets], batch_first=True)
        batch["auxiliary_at"] = heard[:, None].expand_as(masked) if views else heard
    return batch


def heard_clips(
    rows: list[dict[str, Any]], *, extractor: AudioFeatureExtractor, data: MaskedAudioData
) -> dict[str, Tensor]:
    """What a model takes of the parts of clips that held-out rows are evaluated on, without masks."""
    batch = clip_batch(with_seeds(rows), extractor, data, crop_seconds=data.crop_seconds)[1]
    return {name: batch[name] for name in ("input_values", "attention_mask")}


def seen_parts(length: int, share: float, block: int, views: int) -> Tensor:
    """(T, M) masks of a share of the positions that leave spans of so many."""
    masks = [seen_blocks((1, length), round(share * length), (1, block))[0] for _ in range(views)]
    return torch.stack(masks, dim=1)


def mfcc(clip: Tensor, rate: int, window: int, hop: int, bins: int = MEL_BINS, coefficients: int = MFCCS) -> Tensor:
    """Mel-frequency cepstral coefficients of what each frame of the model hears, each normalised over a clip's frames.

    Of log-mel bins themselves seven tenths of the variance are loudness, and little of the loss is left for what is
    said; the coefficients have a variance of one each. What is 30 dB below the clip's mean energy hardly counts:
    without that floor the targets of pauses, and of bands above what a recording holds, are noise. What both earn is
    in `benchmarks/README.md`.

    Args:
        clip: (S,).
        rate: samples a second.
        window, hop: samples that a frame hears, and from one frame to the next.
        bins: number of mel bands.
        coefficients: number of those that are kept.

    Returns:
        (T, coefficients) float32.
    """
    frames = clip.float().unfold(0, window, hop) * torch.hann_window(window)
    power = torch.fft.rfft(frames, 2 ** (window - 1).bit_length()).abs().square()  # (T, F)
    energy = power @ mel_bands(rate, power.shape[-1], bins)
    levels = (energy + 1e-3 * energy.mean() + 1e-6).log()
    waves = torch.arange(coefficients)[:, None] * (torch.arange(bins) + 0.5)
    values = levels @ torch.cos(torch.pi / bins * waves).T * (2 / bins) ** 0.5  # the second cosine transform
    var, mean = torch.var_mean(values, dim=0, correction=0)
    return (values - mean) * (var + 1e-2).rsqrt()  # of a clip without sound next to nothing


def mel_bands(rate: int, frequencies: int, bins: int) -> Tensor:
    """(F, bins) triangles, equally wide on the mel scale of HTK, from 0 to half the rate."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, bins + 2) / 2595) - 1)
    heard = np.linspace(0, rate / 2, frequencies)[:, None]
    rising = (heard - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - heard) / (edges[2:] - edges[1:-1])
    return torch.tensor(np.maximum(np.minimum(rising, falling), 0), dtype=torch.float32)


def masked_windows(
    rows: list[dict[str, Any]], *, tokenizer: Tokenizer, stream: Any, mask: Callable, views: int = 0
) -> dict[str, Any]:
    """A batch of windows between `<s>` and `</s>`: `input_ids`, `masked_ids`, and what is to be predicted, `masked`.

    Args:
        rows: from `d2v.data.language_modeling.stream_rows`.
        tokenizer: of the model.
        stream: the split's tokens; None where rows have their own.
        mask: `mask(ids, starts, seed)`, from `text_masker`.
        views: M, of that mask; `masked` is (B, M, T) then.
    """
    whole, seen, masks = [], [], []
    for row in rows:
        text = row.get("text", stream)
        ids, starts = (cut(values[1:-1], row) for values in (text.ids, text.starts))
        masked, hidden = mask(ids, starts, row.get("seed", (EVALUATION, row["first"])))
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        whole.append([begin, *ids, end])
        seen.append([begin, *masked, end])
        masks.append(F.pad(torch.as_tensor(hidden).reshape(len(ids), -1), (0, 0, 1, 1)))  # (T, 1 or M)
    batch = token_batch(tokenizer, whole) | {"mask_token": tokenizer.mask_token_id}
    masked_ids, masked = token_batch(tokenizer, seen)["input_ids"], pad_sequence(masks, batch_first=True).mT
    return batch | {"masked_ids": masked_ids, "masked": masked if views else masked[:, 0]}


def text_masker(tokenizer: Tokenizer, data: MaskedTextData, views: int = 0) -> Callable:
    """`mask(ids, starts, seed)` as `masker` returns it, for spans or views where they are asked for.

    Raises:
        InputError: whole words are asked for with one of these.
    """
    if data.whole_words and (views or data.mask_length > 1):
        other = f"economy.views {views}" if views else f"data.mask_length {data.mask_length}"
        raise InputError(f"data.whole_words does not go with {other}; add --data.whole_words false")
    if views:
        return partial(view_masks, share=data.mask_share, length=data.mask_length, views=views)
    if data.mask_length == 1:
        return masker(tokenizer, data.mask_share, whole_words=data.whole_words)
    return partial(
        span_masks, share=data.mask_share, length=data.mask_length, mask_token=int(tokenizer.mask_token_id or 0)
    )


def span_masks(
    ids: np.ndarray, starts: np.ndarray, seed: Sequence[int], *, share: float, length: int, mask_token: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (T,) with spans of `<mask>`, and where these are, (T,) bool; `starts` is not looked at."""
    with seeded((*seed, 2)):
        hidden = span_mask([len(ids)], len(ids), share, min(length, len(ids)), 1)[0].numpy()
    return np.where(hidden, mask_token, ids), hidden


def view_masks(
    ids: np.ndarray, starts: np.ndarray, seed: Sequence[int], *, share: float, length: int, views: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (T,) as they are, and M masks, (T, M) bool; `starts` is not looked at."""
    with seeded((*seed, 2)):
        return ids, seen_parts(len(ids), share, length, views).numpy()


def masked_images(
    rows: list[dict[str, Any]],
    *,
    processor: Any,
    augmented: Any,
    data: MaskedImageData,
    grid: tuple[int, int],
    views: int = 0,
) -> dict[str, Any]:
    """A batch of images, those of train augmented, with `masked` (B, P).

    Args:
        rows: of a split.
        processor: of the model.
        augmented: from `d2v.data.augment.augmenter`.
        data: where the images are, and how much of them is masked, from `fit_blocks`.
        grid: rows and columns of patches.
        views: M masks of each image, (B, M, P), that leave square blocks; 0 for one that masks blocks.
    """
    count, side = hidden_patches(data, grid), max(round(data.mask_block**0.5), 1)
    rows, images, decoded = load_images(rows, data, processor.channels)
    masks = []
    for row in with_seeds(rows):
        with seeded((*row["seed"], 2)):
            if views:
                masks.append(torch.stack([seen_blocks(grid, count, (side, side)).flatten() for _ in range(views)]))
            else:
                masks.append(block_mask(grid, count, data.mask_block).flatten())
    batch = {"size": len(rows), "rows": [row["row"] for row in rows], "decoded": decoded, "masked": torch.stack(masks)}
    if "seed" not in rows[0]:
        return batch | processor(images)
    seeds = [row["seed"] for row in rows]
    pixels = [augmented(*pair) for pair in zip(images, seeds, strict=True)]
    return batch | {"pixel_values": torch.stack(pixels)}


def patches(pixel_values: Tensor, patch: tuple[int, int]) -> Tensor:
    """The pixels of each patch, (B, P, pixels), normalised over the patch as masked autoencoders have them.

    Args:
        pixel_values: (B, channels, height, width).
        patch: height and width of a patch; what is left over at the right and the bottom is not seen.
    """
    x = pixel_values.unfold(2, patch[0], patch[0]).unfold(3, patch[1], patch[1])  # (B, channels, rows, columns, ...)
    x = at_least_fp32(x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
    var, mean = torch.var_mean(x, dim=-1, keepdim=True)
    return (x - mean) * (var + 1e-6).rsqrt()
