"""Sound files to batches of waveforms, and transcripts to CTC labels and back.

Shapes: B batch, S samples.
"""

import io
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from d2v.errors import InputError
from d2v.pretrained import fetch_file, read_json, write_json

AudioSource = str | os.PathLike | bytes | dict[str, Any]
# What Hugging Face's tokenizer assumes where tokenizer_config.json is silent.
DEFAULT_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
DEFAULT_TOKENS |= {"bos_token": "<s>", "eos_token": "</s>"}
CASES: dict[str, Callable[[str], str]] = {"keep": str, "lower": str.lower, "upper": str.upper}

# libsndfile shortens a cut-off WAV, AIFF, AU or Ogg file without an error; only its log tells. Programs that write to a
# pipe cannot know the size and claim 2 GiB or more (eSpeak 0x7ffff000, FFmpeg 0xffffffff); such files are whole.
CUT_OFF = re.compile(r"(?:data|SSND|Data Size) *: (\d+) \(should be|Ogg ?: (?:File ended|Junk|Last page)")
SIZE_UNKNOWN = 0x7F000000


def load_audio(source: AudioSource, sampling_rate: int = 16_000) -> np.ndarray:
    """Decode a sound file to one channel at the wanted rate.

    Args:
        source: a path, the bytes of a file, the `{"bytes", "path"}` of `datasets.Audio(decode=False)`, or the decoded
            `{"array", "sampling_rate"}`.
        sampling_rate: of the result, in Hz.

    Returns:
        (S,) float32, full scale is 1; the mean of the channels. A file that is missing, not audio, damaged, cut off
        (WAV, AIFF, AU, FLAC and Ogg can tell), empty or not finite is an InputError.
    """
    if decoded := _decoded(source):
        name, (samples, rate) = "array", decoded
    else:
        name, file = _open(source)
        rate = file.samplerate
        try:
            with file:
                samples = file.read(dtype="float32", always_2d=True).mean(axis=1)  # (S,)
        except soundfile.LibsndfileError as error:
            raise InputError(f"{name}: damaged or cut-off audio ({error.error_string})") from error
    if not np.isfinite(samples).all():
        raise InputError(f"{name}: has NaN or infinite samples; audio must be finite")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    if not samples.size:
        raise InputError(f"{name}: no samples at {sampling_rate} Hz; audio must not be empty")
    return samples


def audio_seconds(source: AudioSource) -> float:
    """Duration in seconds by the header alone (an estimate for MP3 files without one); errors as in `load_audio`."""
    if decoded := _decoded(source):
        samples, rate = decoded
        return len(samples) / rate
    _, file = _open(source)
    with file:
        return file.frames / file.samplerate


def _decoded(source: AudioSource) -> tuple[np.ndarray, int] | None:
    """Samples and rate of a source that is decoded already, both checked; else None."""
    if not isinstance(source, dict) or "array" not in source:
        return None
    samples, rate = np.asarray(source["array"], np.float32), source.get("sampling_rate")
    if samples.ndim != 1:
        raise InputError(f"array: has shape {samples.shape}; must be (samples,), one channel")
    # From telephone codecs' and below to studio recorders': anything else is a mix-up of columns or units.
    if isinstance(rate, bool) or not isinstance(rate, int) or not 1_000 <= rate <= 384_000:
        raise InputError(f"sampling_rate: {rate!r} should be a whole number of Hz from 1000 to 384000")
    return samples, rate


def _open(source: AudioSource) -> tuple[str, soundfile.SoundFile]:
    """The name for messages and the opened file, its header checked."""
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
    else:
        data, path = (source, None) if isinstance(source, bytes) else (None, source)
    name = "<bytes>" if path is None else str(path)
    if data is None and not (isinstance(path, str | os.PathLike) and Path(path).is_file()):
        raise InputError(f"{name}: no such file; audio is a file's path or its bytes")
    try:
        file = soundfile.SoundFile(path if data is None else io.BytesIO(data))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless .raw file
        reason = getattr(error, "error_string", error)
        raise InputError(f"{name}: not readable as audio, use WAV, FLAC, Ogg or MP3 ({reason})") from error
    cut = CUT_OFF.search(file.extra_info)
    if cut and int(cut[1] or 0) < SIZE_UNKNOWN:
        raise InputError(f"{name}: cut off, shorter than its header says; copy or write it again")
    if not 0 < file.frames < 2**62:  # libsndfile says 2**63 - 1 where a FLAC header has no length
        raise InputError(f"{name}: the header says {file.frames} samples; audio must have a known length above 0")
    return name, file


@dataclass
class AudioFeatureExtractor:
    """Waveforms to a padded batch; the fields are those of Hugging Face's `Wav2Vec2FeatureExtractor`.

    Attributes:
        feature_size: 1, a waveform.
        sampling_rate: that the model was trained at, in Hz.
        padding_side: "right".
        padding_value: of the samples after the end of a clip.
        do_normalize: scale each clip to zero mean and unit variance; data2vec was trained so.
        return_attention_mask: only kept for the file; the mask is always returned, as d2v's models skip the padding.
    """

    feature_size: int = 1
    sampling_rate: int = 16_000
    padding_side: str = "right"
    padding_value: float = 0.0
    do_normalize: bool = True
    return_attention_mask: bool = True

    def __post_init__(self):
        if (self.feature_size, self.padding_side) != (1, "right"):
            raise InputError("preprocessor_config.json: feature_size must be 1 and padding_side 'right'")

    def __call__(self, clips: list[np.ndarray]) -> dict[str, Tensor]:
        """Normalise each clip over its own samples and pad to the longest.

        Args:
            clips: B arrays of any length, (S,) each.

        Returns:
            `input_values` (B, S) float32; `attention_mask` (B, S) int64, 1 where there is sound.
        """
        clips = [np.asarray(clip, np.float32) for clip in clips]
        for i, clip in enumerate(clips):
            if clip.ndim != 1 or not clip.size:
                raise InputError(f"clip {i} has shape {clip.shape}; must be (samples,) with at least one sample")
        shape = len(clips), max(map(len, clips), default=0)
        values = np.full(shape, self.padding_value, np.float32)  # (B, S)
        mask = np.zeros(shape, np.int64)  # (B, S)
        for row, row_mask, clip in zip(values, mask, clips, strict=True):
            if self.do_normalize:  # 1e-7 as Hugging Face's zero_mean_unit_var_norm
                clip = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
            row[: len(clip)] = clip
            row_mask[: len(clip)] = 1
        return {"input_values": torch.from_numpy(values), "attention_mask": torch.from_numpy(mask)}

    @classmethod
    def for_model(cls, source: str | Path | None) -> "AudioFeatureExtractor":
        """That of a checkpoint to train or to use, or data2vec's for a new model."""
        extractor = cls.from_pretrained(source) if source else cls()
        if not extractor.do_normalize:  # fairseq's base configurations say so, which were made for wav2vec 2.0
            raise InputError(f"{source}: has do_normalize false; data2vec was trained on normalised sound")
        return extractor

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "AudioFeatureExtractor":
        """From `processor_config.json` or `preprocessor_config.json` of a folder or hub repository."""
        entries = None
        if path := fetch_file(source, "processor_config.json"):
            entries = read_json(path).get("feature_extractor")  # missing before Hugging Face's version 5
        if entries is None:
            if not (path := fetch_file(source, "preprocessor_config.json")):
                raise InputError(
                    f"{source}: no preprocessor_config.json, nor processor_config.json with feature_extractor"
                )
            entries = read_json(path)
        if (kind := entries.get("feature_extractor_type", "Wav2Vec2FeatureExtractor")) != "Wav2Vec2FeatureExtractor":
            raise InputError(f"{path}: feature_extractor_type is {kind!r}; must be 'Wav2Vec2FeatureExtractor'")
        return cls(**{f.name: entries[f.name] for f in fields(cls) if f.name in entries})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json` and the `processor_config.json` that newer versions look for first."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        entries = {"feature_extractor_type": "Wav2Vec2FeatureExtractor"} | asdict(self)
        processor = {"processor_class": "Wav2Vec2Processor", "feature_extractor": entries}
        write_json(Path(folder) / "preprocessor_config.json", entries)
        write_json(Path(folder) / "processor_config.json", processor)


@dataclass
class CTCTokenizer:
    """Characters to label numbers and back, with the text normalisation that the vocabulary was built with.

    Attributes:
        vocab: token to number, 0 to len - 1. Tokens of one character can be written, the others are special.
        pad_token: the CTC blank, and the padding of labels.
        unk_token: stands for characters that are not in the vocabulary, and is written as it is.
        word_delimiter_token: the space between words.
        bos_token, eos_token: in some vocabularies, never written; CTC has no use for them.
        case: "keep", "lower" or "upper".
        remove: the characters to delete from texts.
    """

    vocab: dict[str, int]
    pad_token: str = "<pad>"
    unk_token: str = "<unk>"
    word_delimiter_token: str = "|"
    bos_token: str | None = None
    eos_token: str | None = None
    case: str = "keep"
    remove: str = ""

    def __post_init__(self):
        if self.case not in CASES:
            raise InputError(f"case is {self.case!r}; must be {', '.join(CASES)}")
        numbers = self.vocab.values()
        if any(type(i) is not int for i in numbers) or set(numbers) != set(range(len(numbers))):
            raise InputError(f"vocab.json: must map {len(numbers)} tokens to the numbers 0 to {len(numbers) - 1}")
        for token in (self.pad_token, self.unk_token, self.word_delimiter_token):
            if token not in self.vocab:
                raise InputError(f"vocab.json: no {token!r}; pad, unk and word delimiter token must be in it")
        self.pad_token_id = self.vocab[self.pad_token]
        self.unk_token_id = self.vocab[self.unk_token]
        self.word_delimiter_token_id = self.vocab[self.word_delimiter_token]
        silent = dict.fromkeys((self.pad_token, self.bos_token, self.eos_token), "")
        written = silent | {self.word_delimiter_token: " "}
        self._text = {i: written.get(token, token) for token, i in self.vocab.items()}
        self._id = {token: i for token, i in self.vocab.items() if token not in written}
        self._id[" "] = self.word_delimiter_token_id

    def __len__(self) -> int:
        return len(self.vocab)

    @classmethod
    def from_texts(cls, texts: Iterable[str], case: str = "keep", remove: str = "") -> "CTCTokenizer":
        """Build the vocabulary from transcripts; of the training set only, since nothing else is learned."""
        vocab = {"<pad>": 0, "<unk>": 1, "|": 2}
        normalize = cls(vocab, case=case, remove=remove).normalize
        characters = sorted(set().union(*map(normalize, texts)) - {" "})
        if not characters:
            raise InputError("the training transcripts hold no characters; a vocabulary needs some")
        return cls(vocab | {c: i for i, c in enumerate(characters, len(vocab))}, case=case, remove=remove)

    def normalize(self, text: str) -> str:
        """Unicode NFKC, case, removal; white space collapsed. The word delimiter in a text is a space."""
        # Delete before NFKC too, since it turns "…" into three full stops and an acute accent alone into a space with
        # one; and normalise after casing too, since "ΐ" in upper case is three code points, which compose to two.
        delete = dict.fromkeys(map(ord, self.remove))
        text = unicodedata.normalize("NFKC", text.translate(delete))
        text = unicodedata.normalize("NFKC", CASES[self.case](text)).translate(delete)
        return " ".join(text.replace(self.word_delimiter_token, " ").split())

    def encode(self, text: str) -> list[int]:
        """The labels of a text, normalised first; no delimiter at the end."""
        return [self._id.get(c, self.unk_token_id) for c in self.normalize(text)]

    def unknown(self, text: str) -> set[str]:
        """The characters of a text, normalised first, that the vocabulary lacks."""
        return set(self.normalize(text)) - self._id.keys()

    def decode(self, ids: Sequence[int] | Tensor, *, group: bool = True) -> str:
        """The text of CTC output (`group`: repeats are one, blanks vanish) or of labels; -100 is padding."""
        ids = [i for i in torch.as_tensor(ids).tolist() if i != -100]
        if group:
            ids = [i for i, _ in groupby(ids)]
        try:
            return " ".join("".join([self._text[i] for i in ids]).split())
        except KeyError as error:
            raise InputError(f"label {error} is not in the vocabulary, which has 0 to {len(self) - 1}") from error

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "CTCTokenizer":
        """From `vocab.json` and `tokenizer_config.json` of a folder or hub repository."""
        if not (path := fetch_file(source, "vocab.json")):
            raise InputError(f"{source}: no vocab.json; a CTC tokenizer is vocab.json and tokenizer_config.json")
        vocab = read_json(path)
        config_path = fetch_file(source, "tokenizer_config.json")
        config = read_json(config_path) if config_path else {}
        tokens = {name: config.get(name, default) for name, default in DEFAULT_TOKENS.items()}
        tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
        for token in (tokens["bos_token"], tokens["eos_token"]):
            if token is not None:
                vocab.setdefault(token, len(vocab))  # as Hugging Face does on loading; heads were sized by the sum
        # Only our own files say how texts were cased. In a vocabulary of one case the other would come out as <unk>:
        # facebook/data2vec-audio-base-960h has capitals only, most transcripts are in small letters.
        letters = "".join(token for token in vocab if len(token) == 1)
        case = "upper" if letters.isupper() else "lower" if letters.islower() else "keep"
        return cls(vocab, **tokens, case=config.get("case", case), remove=config.get("remove", ""))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `vocab.json` and `tokenizer_config.json`; Hugging Face's tokenizer leaves `case` and `remove` alone."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        entries = {key: value for key, value in asdict(self).items() if key != "vocab"}
        # do_lower_case would read texts in capitals but write them in small letters, which is none of our cases;
        # clean_up_tokenization_spaces, on by default in older versions, would join " 's" and " ." to the word before.
        entries |= {"do_lower_case": False, "clean_up_tokenization_spaces": False}
        entries |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "processor_class": "Wav2Vec2Processor"}
        write_json(Path(folder) / "vocab.json", self.vocab)
        write_json(Path(folder) / "tokenizer_config.json", entries)
