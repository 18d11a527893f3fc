"""Files that leaderboards' servers take, from what runs predicted.

    python -m d2v.leaderboards glue --cola runs/cola_test --mnli_m runs/mnli_m --ax runs/ax --out glue.zip
    python -m d2v.leaderboards superb --asr runs/asr --ks runs/ks --sd runs/sd --out predict.zip
    python -m d2v.leaderboards open_asr --run runs/clean --model me/mine --name librispeech --split test.clean
    python -m d2v.leaderboards ade20k --run runs/ade_test --out ade20k.zip

A run is the folder of a recipe. What a server would not find, or would take for something else, is an error here.
"""

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from d2v.cli import exit_with
from d2v.errors import InputError
from d2v.hub import in_place_of, read_json
from d2v.processors.image import load_mask
from d2v.training.report import write_jsonl

KEYWORD = "(yes|no|up|down|left|right|on|off|stop|go|_unknown_|_silence_)"
VOXCELEB = r"id\d{5}-\S{11}-\d{5}"  # speaker, video, utterance
NUMBER = r"-?\d+(\.\d+)?(e-?\d+)?"
# A task of SUPERB's -> its file, what a line of it matches, an example, and how many lines the test set has.
# s3prl: submit/submit.py, and log_records in downstream/{asr,speech_commands,voxceleb1,sv_voxceleb1}/expert.py
SUPERB = {
    "asr": ("asr_public/predict.ark", r"\d+-\d+-\d{4}( \S+)*", "1089-134686-0000 HE HOPED THERE WOULD BE STEW", 2620),
    "asr_lm": ("asr_lm_public/predict.ark", r"\d+-\d+-\d{4}( \S+)*", "1089-134686-0000 HE HOPED", 2620),
    "ks": ("ks_public/predict.txt", rf"{KEYWORD}-\S+\.wav {KEYWORD}", "yes-0a7c2a8d_nohash_0.wav yes", 3081),
    "sid": ("sid_public/predict.txt", rf"{VOXCELEB} id\d{{5}}", "id10001-1zcIwhmdeo4-00001 id10001", 8251),
    "asv": (
        "sv_public/predict.txt",
        rf"{VOXCELEB}_{VOXCELEB} {NUMBER}",
        "id10270-x6uYqmx31kE-00001_id10270-8jEAjG6SegY-00008 0.5",
        37720,
    ),
}
FRAME_SHIFT = 320  # samples from one frame to the next: the product of data2vec's strides


NLI = {name: name for name in ("entailment", "neutral", "contradiction")}
TWO_WAY = {name: name for name in ("entailment", "not_entailment")}
# A task of GLUE's -> its file, what stands there for each class (None: a value from 0 to 5), and its number of rows.
# Files: jiant's scripts for GLUE; class names and numbers of rows: the card of nyu-mll/glue on the hub.
GLUE: dict[str, tuple[str, dict[str, str] | None, int]] = {
    "cola": ("CoLA.tsv", {"unacceptable": "0", "acceptable": "1"}, 1063),
    "sst2": ("SST-2.tsv", {"negative": "0", "positive": "1"}, 1821),
    "mrpc": ("MRPC.tsv", {"not_equivalent": "0", "equivalent": "1"}, 1725),
    "stsb": ("STS-B.tsv", None, 1379),
    "qqp": ("QQP.tsv", {"not_duplicate": "0", "duplicate": "1"}, 390965),
    "mnli_m": ("MNLI-m.tsv", NLI, 9796),
    "mnli_mm": ("MNLI-mm.tsv", NLI, 9847),
    "qnli": ("QNLI.tsv", TWO_WAY, 5463),
    "rte": ("RTE.tsv", TWO_WAY, 3000),
    "wnli": ("WNLI.tsv", {"not_entailment": "0", "entailment": "1"}, 146),
    "ax": ("AX.tsv", NLI, 1104),
}


def glue(
    *,
    cola: str | None = None,
    sst2: str | None = None,
    mrpc: str | None = None,
    stsb: str | None = None,
    qqp: str | None = None,
    mnli_m: str | None = None,
    mnli_mm: str | None = None,
    qnli: str | None = None,
    rte: str | None = None,
    wnli: str | None = None,
    ax: str | None = None,
    out: str = "glue.zip",
) -> None:
    """GLUE: its server takes eleven files or none, so a task without a run gets the same prediction in all rows.

    Args:
        cola, sst2, mrpc, stsb, qqp, qnli, rte, wnli: runs of text_classification in mode predict on the split test.
        mnli_m, mnli_mm: runs on the splits test_matched and test_mismatched of MNLI.
        ax: run of the model for MNLI on the diagnostic set.
        out: file to write.

    Raises:
        InputError: there is no run, or one has not exactly the rows of its test set.
    """
    runs = {
        "cola": cola,
        "sst2": sst2,
        "mrpc": mrpc,
        "stsb": stsb,
        "qqp": qqp,
        "mnli_m": mnli_m,
        "mnli_mm": mnli_mm,
        "qnli": qnli,
        "rte": rte,
        "wnli": wnli,
        "ax": ax,
    }
    check_given(runs)
    if not any(runs.values()):
        raise InputError(f"glue: no run; give one or more of {', '.join(f'--{task}' for task in runs)}")
    files = {GLUE[task][0]: glue_rows(task, run) for task, run in runs.items()}
    with new_zip(out) as archive:
        for name, rows in files.items():
            lines = ["index\tprediction", *(f"{i}\t{row}" for i, row in enumerate(rows))]
            archive.writestr(name, "\n".join(lines) + "\n")
    print(f"{out}: {', '.join(task for task, run in runs.items() if run)}")
    if constant := [task for task, run in runs.items() if not run]:
        print(f"one prediction for all rows, for want of a run: {', '.join(constant)}")


def glue_rows(task: str, run: str | None) -> list[str]:
    """The predictions for a task's test set in its order, as GLUE writes them; without a run the first class each."""
    _, classes, count = GLUE[task]
    if run is None:
        return [next(iter(classes.values())) if classes else "0.000"] * count
    rows = read_predictions(run, id=str, **({"label": str} if classes else {"value": float}))
    found: dict[str, str] = {}
    for row in rows:
        if classes is None:
            if not math.isfinite(row["value"]):
                raise InputError(f"{run}: row {row['id']} has the value {row['value']}; should be a number")
            prediction = f"{min(max(row['value'], 0), 5):.3f}"
        elif (prediction := classes.get(row["label"], row["label"])) not in classes.values():
            raise InputError(f"{run}: {task} has the classes {', '.join(classes)}, not {row['label']!r}")
        if row["id"] in found:
            raise InputError(f"{run}: two predictions for row {row['id']}; there should be one")
        found[row["id"]] = prediction
    if found.keys() != {str(i) for i in range(count)}:
        raise InputError(f"{run}: {len(found)} rows; should be those of {task}'s test set, numbered 0 to {count - 1}")
    return [found[str(i)] for i in range(count)]


def superb(
    *,
    asr: str | None = None,
    ks: str | None = None,
    sid: str | None = None,
    asv: str | None = None,
    sd: str | None = None,
    out: str = "predict.zip",
) -> None:
    """SUPERB: one file for as many of its tasks as there are runs. Its rule is that the encoder is frozen.

    Args:
        asr: run of asr_ctc on LibriSpeech's test-clean; if it used a language model, that is an entry too.
        ks: run of audio_classification on the test archive of Speech Commands.
        sid: run of audio_classification on VoxCeleb1's speakers.
        asv: run of speaker_verification on VoxCeleb1's trials.
        sd: run of audio_frame_classification on Libri2Mix's test.
        out: file to write.

    Raises:
        InputError: there is no run, or one lacks what its task takes.
    """
    check_given({"asr": asr, "ks": ks, "sid": sid, "asv": asv, "sd": sd})
    files: dict[str, str | bytes] = {}
    contents = []

    def add(task: str, run: str, predictions: Iterable[tuple[str, Any]]) -> None:
        path, pattern, example, complete = SUPERB[task]
        lines = format_lines(run, predictions, pattern, example)
        files[path] = "".join(f"{line}\n" for line in lines)
        contents.append(f"{task} ({len(lines)} of {complete})")

    if asr is not None:
        rows = read_predictions(asr, id=str, text=str)
        for task, field in ("asr", "text"), ("asr_lm", "text_lm"):
            if any(field in row for row in rows):
                read_predictions(asr, id=str, **{field: str})  # all or none have it
                add(task, asr, [(Path(row["id"]).stem, " ".join(row[field].upper().split())) for row in rows])
    if ks is not None:
        rows = read_predictions(ks, id=str, label=str)
        add("ks", ks, [("-".join(Path(row["id"]).parts[-2:]), row["label"]) for row in rows])
    if sid is not None:
        rows = read_predictions(sid, id=str, label=str)
        add("sid", sid, [(voxceleb_name(row["id"]), row["label"]) for row in rows])
    if asv is not None:
        rows = read_predictions(asv, enrol=str, test=str, score=float)
        trials = [f"{voxceleb_name(row['enrol'])}_{voxceleb_name(row['test'])}" for row in rows]
        add("asv", asv, zip(trials, (row["score"] for row in rows), strict=True))
    if sd is not None:
        names = dict.fromkeys(Path(row["id"]).stem for row in read_predictions(sd, id=str))
        for name in names:
            probabilities = read_probabilities(Path(sd, "probabilities", f"{name}.npy"))
            files[f"sd_public/scoring/predictions/{name}.h5"] = to_hdf5(T_hat=probabilities)
        files["sd_public/frame_shift"] = f"{FRAME_SHIFT}\n"
        contents.append(f"sd ({len(names)} recordings)")
    if not files:
        raise InputError("superb: no run; give one or more of --asr, --ks, --sid, --asv, --sd")
    with new_zip(out) as archive:
        for path, content in files.items():
            archive.writestr(f"predict/{path}", content)
    print(f"{out}: {', '.join(contents)}")


def open_asr(
    *, run: str, model: str, name: str, split: str, dataset: str = "hf-audio/open-asr-leaderboard", out: str = "."
) -> None:
    """The Open ASR Leaderboard: a manifest of one set, of text as it is, since scoring normalises.

    Args:
        run: of asr_ctc in mode evaluate; where it used a language model, what that heard is the entry.
        model: its hub id.
        name: of the set within the data set, such as librispeech; empty if it is a data set of its own.
        split: such as test.clean.
        dataset: hub id.
        out: folder to write into.

    Raises:
        InputError: the run lacks what a manifest has.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise InputError(f"model: should be a hub id like me/data2vec-mine, not {model!r}")
    rows = read_predictions(run, id=str, text=str, reference=str)
    heard = "text_lm" if any("text_lm" in row for row in rows) else "text"
    read_predictions(run, **{heard: str})  # all or none have it
    took = seconds_of(read_json(Path(run, "results.json")), Path(run, "results.json"))
    texts = [row.get("transcript", row["reference"]) for row in rows]  # a reference has the case of the vocabulary
    # open_asr_leaderboard: write_manifest in normalizer/eval_utils.py. Speed is scored where all rows have a duration
    # and a time, as the quotient of their sums, so that the mean does for each time.
    manifest = [
        {
            "audio_filepath": row["id"],
            "duration": seconds_of(row, Path(run, "predictions.jsonl")),
            "time": took and took / len(rows),
            "text": text,
            "pred_text": row[heard],
        }
        for row, text in zip(rows, texts, strict=True)
        # is_target_text_in_range in normalizer/data_utils.py, which sees a text without case and signs
        if re.sub(r"[\W_]+", " ", text.lower()).strip() not in ("", "ignore time segment in scoring")
    ]
    parts = [part.replace("/", "-") for part in (model, dataset, name)]
    file = Path(out, "MODEL_{}_DATASET_{}_{}_{}.jsonl".format(*parts, split))
    file.parent.mkdir(parents=True, exist_ok=True)
    with in_place_of(file) as beside:
        write_jsonl(beside, manifest)
    print(f"{file}: {len(manifest)} of {len(rows)} clips; the others have no reference")


def seconds_of(entries: dict[str, Any], path: Path) -> float | None:
    """The seconds of a run or of a row, None where it has none; InputError if they are no number."""
    seconds = entries.get("seconds")
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise InputError(f"{path}: seconds should be a number, not {seconds!r:.40}")
    return seconds


def ade20k(*, run: str, out: str = "ade20k.zip") -> None:
    """ADE20K, the benchmark of SceneParsing: a label map for each image of its test set, classes counted from 1.

    Args:
        run: of semantic_segmentation in mode predict on the test set's images.
        out: file to write.

    Raises:
        InputError: the run has not exactly the test set's images, or a label map is not what the server takes.
    """
    found = {Path(row["id"]).stem: Path(run, row["mask"]) for row in read_predictions(run, id=str, mask=str)}
    # 3,352 images, as of the release of 2016 (README of CSAILVision/sceneparsing: the label maps' names and values).
    wanted = [f"ADE_test_{i:08d}" for i in range(1, 3353)]
    if lacking := sorted(set(wanted) - set(found)):
        raise InputError(
            f"{run}: no label map of {lacking[0]}; {len(lacking)} of {len(wanted)} test images are missing"
        )
    if more := sorted(set(found) - set(wanted)):
        raise InputError(f"{run}: {more[0]} is no image of ADE20K's test set, ADE_test_00000001 to {wanted[-1]}")
    with new_zip(out) as archive:
        for name in wanted:
            labels = load_mask(found[name])
            if labels.max() >= 150:
                raise InputError(
                    f"{found[name]}: label {labels.max()}; should be 0 to 149, of a model with 150 classes"
                )
            buffer = io.BytesIO()
            Image.fromarray((labels + 1).astype(np.uint8)).save(buffer, "PNG")
            archive.writestr(f"{name}.png", buffer.getvalue())
    print(f"{out}: {len(wanted)} label maps")


@contextmanager
def new_zip(out: str) -> Iterator[zipfile.ZipFile]:
    """Within, an archive to write; the file is there when it is whole."""
    with in_place_of(Path(out)) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        yield archive


def check_given(runs: dict[str, str | None]) -> None:
    """Raise InputError for the first run that is blank text, which as a path would mean the working directory."""
    if blank := [name for name, run in runs.items() if run is not None and not run.strip()]:
        raise InputError(f"--{blank[0]} is empty, such as a variable that is not set; should be the folder of a run")


def read_predictions(run: str, **fields: type) -> list[dict[str, Any]]:
    """The rows of a run's `predictions.jsonl`.

    Args:
        run: folder.
        fields: what every row must have, and its type.

    Raises:
        InputError: there is no such file, or a line of it has no such row.
    """
    check_given({"run": run})
    path, rows = Path(run, "predictions.jsonl"), []
    if not path.is_file():
        raise InputError(f"{path}: no such file; a recipe leaves it when it has evaluated or predicted")
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from error
    for i, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            values = {field: row[field] for field in fields}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {i}: should be a JSON object with {', '.join(fields)} ({error})") from error
        for field, kind in fields.items():
            if not isinstance(values[field], kind):
                raise InputError(f"{path}, line {i}: {field} should be of type {kind.__name__}, not {values[field]!r}")
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: no predictions")
    return rows


def format_lines(run: str, predictions: Iterable[tuple[str, Any]], pattern: str, example: str) -> list[str]:
    """Lines of a name and what was predicted for it; InputError for one that the server cannot use.

    The server splits at the first space and keeps one prediction for a name. It gives up a task for one unknown name.
    """
    lines: list[str] = []
    known: dict[str, str] = {}
    for name, prediction in predictions:
        lines.append(f"{name} {prediction}".rstrip())
        if not re.fullmatch(pattern, lines[-1]):
            raise InputError(f"{run}: SUPERB takes lines like {example!r}, not {lines[-1]!r}")
        if known.setdefault(name, lines[-1]) != lines[-1]:
            raise InputError(f"{run}: two predictions for {name}; there should be one")
    return lines


def voxceleb_name(clip: str) -> str:
    """<speaker>-<video>-<utterance> of a path .../<speaker>/<video>/<utterance>.wav."""
    return "-".join([*Path(clip).parts[-3:-1], Path(clip).stem])


def read_probabilities(path: Path) -> np.ndarray:
    """A recording's probabilities that each of two speakers talks, (T, 2); InputError if they are not that."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no readable array, as audio_frame_classification writes it ({error})") from error
    if values.ndim != 2 or values.shape[1] != 2 or not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{path}: {values.dtype} of shape {values.shape}; should be floats of shape (frames, 2)")
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{path}: {values.min():.3g} to {values.max():.3g}; probabilities are from 0 to 1")
    return values


def to_hdf5(**arrays: np.ndarray) -> bytes:
    """An HDF5 file of these data sets."""
    try:
        import h5py
    except ImportError:
        raise InputError('to write HDF5 takes h5py: pip install -e ".[h5]" in the clone of d2v') from None
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return buffer.getvalue()


def main(args: list[str] | None = None) -> None:
    """The command line; exit code 2 for bad input."""
    import jsonargparse

    try:
        jsonargparse.auto_cli(
            [glue, superb, open_asr, ade20k],
            args=args,
            as_positional=False,
            prog="python -m d2v.leaderboards",
            description=(__doc__ or "").partition("\n")[0],
        )
    except (InputError, OSError) as error:
        exit_with(2, f"error: {error}")


if __name__ == "__main__":
    main()
