"""Speech synthesised on the spot by eSpeak NG, and data sets of it that are kept.

Its library and voices lie in the wheel of the PyPI package `espeakng-loader`: no system package, no network. The
numbers passed to it are those of eSpeak NG's `speak_lib.h`.
"""

import ctypes
import functools
import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE_RATE = 16_000
SPLITS = ("train", "validation", "test")
Sizes = tuple[int, ...]  # rows of each, of the first two or of all three


def speak(text: str, voice: str, *, rate: int = 150, pitch: int = 50) -> np.ndarray:
    """Synthesises one utterance.

    eSpeak NG's state is global to the process and carries over: call from one thread only, and expect slightly other
    samples from a repeated call. The same calls in a new process give the same samples.

    Args:
        text: English text.
        voice: an accent of eSpeak NG, with or without a variant: "en-us", "en-gb-scotland+f2".
        rate: words a minute, 80 to 450.
        pitch: 0 to 100; 50 is the voice's own.

    Returns:
        (S,) float32 within about [-1, 1], mono at 16 kHz.

    Raises:
        InputError: the package is not installed, or it has no such voice.
    """
    import soxr

    library, native_rate, variants, chunks = open_espeak()
    variant = voice.partition("+")[2]
    # eSpeak NG reads an unknown variant as none, which would silently make two speakers one
    unknown = variant and not (variants / variant).is_file()
    if unknown or library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise InputError(f"voice: {voice!r} is not one of eSpeak NG's, which are like 'en-us' or 'en-gb-scotland+f2'")
    # 1 is the rate, 3 the pitch, 2 the volume: at the default of 100 several voices saturate
    for parameter, value in (1, rate), (2, 60), (3, pitch):
        library.espeak_SetParameter(parameter, value, 0)
    chunks.clear()
    data = text.encode() + b"\0"
    # from character 0 (of position type 1) to the end (0), as UTF-8 (flag 1); returns when all samples are there
    library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, 1, None, None)
    waveform = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / 32768
    return soxr.resample(waveform, native_rate, SAMPLE_RATE)


@functools.cache
def open_espeak() -> tuple[ctypes.CDLL, int, Path, list[bytes]]:
    """Opens eSpeak NG: the library, its sample rate, the folder of its variants, the list that gets the samples."""
    try:
        import espeakng_loader
    except ImportError:
        raise InputError(
            'the speech demo needs espeakng-loader: pip install -e ".[demo]" in the clone of d2v'
        ) from None
    library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
    data = Path(espeakng_loader.get_data_path())
    # 2 hands the samples over synchronously; 0x8000 returns on failure, where the default exits the process
    native_rate = library.espeak_Initialize(2, 0, os.fsencode(data), 0x8000)
    if native_rate <= 0:  # eSpeak NG 1.52 keeps 160 characters of the path
        raise InputError(f"{data}: eSpeak NG cannot open its voices; their path must be shorter than 160 characters")
    library.espeak_ng_SetRandSeed(1)  # of breath and hiss; Initialize took the time
    chunks: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def receive(samples, count, events):
        if samples:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0  # go on

    library.espeak_SetSynthCallback(receive)
    library.receive = receive  # else it is collected and eSpeak NG calls freed memory
    return library, native_rate, data / "voices" / "!v", chunks


def keep(rows: Callable, cache_dir: str | Path | None, seed: int, sizes: Sizes) -> dict[str, "Dataset"]:
    """The splits of a synthesised set, from the cache, or else made now, in a process of its own, and kept there.

    Args:
        rows: a function of a module; `rows(split, size, rng)` yields rows, whose `audio` is a waveform.
        cache_dir: folder; else the environment variable `D2V_CACHE`, else `~/.cache/d2v`.
        seed: of the random numbers.
        sizes: rows of train, validation and, if it has one, test.

    Raises:
        InputError: eSpeak NG is not installed, or the folder cannot be written.
    """
    import datasets
    import pyarrow.parquet as pq

    open_espeak()  # raises here, rather than in the child, what a user can mend
    cache = Path(cache_dir or os.environ.get("D2V_CACHE") or "~/.cache/d2v").expanduser().resolve() / "demo"
    version = Path(__file__).read_bytes() + Path(rows.__code__.co_filename).read_bytes()
    version += repr((importlib.metadata.version("espeakng-loader"), seed, sizes)).encode()
    folder = cache / f"{rows.__name__.strip('_')}-{hashlib.sha256(version).hexdigest()[:12]}"
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                built = f"{temporary}/built"
                # in a new process, where eSpeak NG always starts from the same state (see speak)
                call = f"from {rows.__module__} import {rows.__name__} as rows; from d2v.demo.espeak import write; "
                call += f"write(rows, {built!r}, {sizes!r}, {seed!r})"
                environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
                subprocess.run([sys.executable, "-c", call], check=True, env=environment)
                Path(built).rename(folder)
        except OSError as error:
            if not folder.exists():  # else another process was faster, and its copy is as good
                raise InputError(f"{cache}: cannot keep the demo set there ({error}); set D2V_CACHE") from None
    return {split: datasets.Dataset(pq.read_table(folder / f"{split}.parquet")) for split in SPLITS[: len(sizes)]}


def write(rows: Callable, folder: str, sizes: Sizes, seed: int) -> None:
    """Write `<split>.parquet` for every split into `folder`, which must not exist; see `keep`."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    import soundfile

    Path(folder).mkdir()
    rng = np.random.default_rng(seed)
    for split, size in zip(SPLITS, sizes, strict=False):
        made = []
        for i, row in enumerate(rows(split, size, rng)):
            flac = io.BytesIO()
            soundfile.write(flac, row["audio"], SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            made.append(row | {"audio": {"bytes": flac.getvalue(), "path": f"{split}-{i:04d}.flac"}})
        table = pa.Table.from_pylist(made)
        features = datasets.Features.from_arrow_schema(table.schema)
        features["audio"] = datasets.Audio(decode=False)
        # the schema carries the features, so that `datasets.load_dataset(folder)` reads the same
        pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), f"{folder}/{split}.parquet")
