"""Files for leaderboards, judged by checkers that are written from the formats' descriptions, not from our code."""

import json
import math
import re
import runpy
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from d2v.leaderboards import main, read_predictions

KEYWORDS = {"yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "_unknown_", "_silence_"}
DATASET = "hf-audio/open-asr-leaderboard"


class Refused(AssertionError):
    pass


def require(condition, what):
    if not condition:
        raise Refused(what)


# Checkers


GLUE_FILES = {  # what the server expects, by file: rows, and what may stand there
    "CoLA.tsv": (1063, {"0", "1"}),
    "SST-2.tsv": (1821, {"0", "1"}),
    "MRPC.tsv": (1725, {"0", "1"}),
    "STS-B.tsv": (1379, None),
    "QQP.tsv": (390965, {"0", "1"}),
    "MNLI-m.tsv": (9796, {"entailment", "neutral", "contradiction"}),
    "MNLI-mm.tsv": (9847, {"entailment", "neutral", "contradiction"}),
    "QNLI.tsv": (5463, {"entailment", "not_entailment"}),
    "RTE.tsv": (3000, {"entailment", "not_entailment"}),
    "WNLI.tsv": (146, {"0", "1"}),
    "AX.tsv": (1104, {"entailment", "neutral", "contradiction"}),
}


def check_glue(path):
    """What the server of gluebenchmark.com reads; returns the predictions by file."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        require(sorted(archive.namelist()) == sorted(GLUE_FILES), f"files {archive.namelist()}")
        for name, (count, classes) in GLUE_FILES.items():
            header, *rows, end = archive.read(name).decode("utf-8").split("\n")
            require(header == "index\tprediction" and end == "", f"{name}: no header, or the last line is cut")
            fields = [row.split("\t") for row in rows]
            require(all(len(row) == 2 for row in fields), f"{name}: not two columns")
            require([index for index, _ in fields] == [str(i) for i in range(count)], f"{name}: indices")
            found[name] = [prediction for _, prediction in fields]
            if classes:
                require(set(found[name]) <= classes, f"{name}: {set(found[name])}")
            else:
                require(all(re.fullmatch(r"[0-5]\.\d{3}", value) for value in found[name]), f"{name}: no values")
                require(max(map(float, found[name])) <= 5, f"{name}: above 5")
    return found


def check_superb(path):
    """What the server of superbbenchmark.org reads; returns the tasks it would score."""
    checks = {
        "asr_public/predict.ark": check_transcript,
        "asr_lm_public/predict.ark": check_transcript,
        "ks_public/predict.txt": check_keyword,
        "sid_public/predict.txt": check_speaker,
        "sv_public/predict.txt": check_trial,
    }
    tasks = set()
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        require(names and len(set(names)) == len(names), "empty, or a file twice")
        for name in names:
            top, _, rest = name.partition("/")
            task = rest.partition("/")[0]
            require(top == "predict", f"{name} is not in predict/")
            if rest in checks:
                text = archive.read(name).decode("utf-8")
                require(text.endswith("\n"), f"{name} has no lines")
                found = {}
                for line in text[:-1].split("\n"):
                    key, _, value = line.partition(" ")
                    require(found.setdefault(key, value) == value, f"{key} has two predictions")
                    checks[rest](key, value)
            elif rest == "sd_public/frame_shift":
                require(re.fullmatch(rb"[1-9]\d*\n", archive.read(name)), "frame_shift is no integer")
            else:
                require(re.fullmatch(r"sd_public/scoring/predictions/[^/ ]+\.h5", rest), f"{name} is not known")
                with archive.open(name) as file:
                    check_activity(file)
                require("predict/sd_public/frame_shift" in names, "no frame_shift")
            tasks.add(task)
    require("sd_public" not in tasks or any(name.endswith(".h5") for name in names), "frame_shift alone")
    return tasks


def check_transcript(key, value):
    require(re.fullmatch(r"\d{1,5}-\d{1,6}-\d{4}", key), f"{key} is no utterance of LibriSpeech")
    require(value == value.upper(), "not in capitals")
    require(value == "" or all(value.split(" ")), "two spaces, or one at an end")


def check_keyword(key, value):
    folder, _, file = key.partition("-")
    require(folder in KEYWORDS and re.fullmatch(r"[\w-]+\.wav", file), f"{key} is no file of the test archive")
    require(value in KEYWORDS, f"{value} is no class")


def check_utterance(key):
    require(re.fullmatch(r"id1[01]\d{3}-[A-Za-z0-9_-]{11}-\d{5}", key), f"{key} is no utterance of VoxCeleb1")


def check_speaker(key, value):
    check_utterance(key)
    require(re.fullmatch(r"id1[01]\d{3}", value), f"{value} is no speaker of VoxCeleb1")


def check_trial(key, value):
    middle = len(key) // 2  # names are equally long
    require(key[middle] == "_" and len(key) % 2 == 1, f"{key} is no pair")
    check_utterance(key[:middle])
    check_utterance(key[middle + 1 :])
    require(" " not in value and math.isfinite(float(value)), f"{value} is no score")


def check_activity(file):
    import h5py

    with h5py.File(file) as hdf5:
        require(list(hdf5) == ["T_hat"], "no T_hat")
        values = hdf5["T_hat"]
        require(values.ndim == 2 and values.shape[1] == 2 and len(values), f"shape {values.shape}")
        require(values.dtype.kind == "f", f"type {values.dtype}")
        require(np.all((values[:] >= 0) & (values[:] <= 1)), "not probabilities")


def check_open_asr(path):
    """What the scorer reads: who and what from the file's name, then a row a clip; returns the rows."""
    match = re.fullmatch(r"MODEL_([\w.-]+?)-([\w.-]+)_DATASET_([\w.-]+)_([\w.]*)_([\w.]+)\.jsonl", path.name)
    require(match, f"{path.name} is no manifest's name")
    lines = path.read_text("utf-8").split("\n")
    require(lines.pop() == "" and lines, "no rows, or the last is cut")
    rows = [json.loads(line) for line in lines]
    for row in rows:
        require(list(row) == ["audio_filepath", "duration", "time", "text", "pred_text"], f"fields {list(row)}")
        require(all(isinstance(row[key], str) for key in ("audio_filepath", "text", "pred_text")), "not text")
        require(row["text"].strip() not in ("", "ignore time segment in scoring"), "no reference")
        for key in ("duration", "time"):
            require(row[key] is None or (isinstance(row[key], float) and row[key] > 0), f"{key} {row[key]}")
    return rows


# Runs


def write_run(folder, rows, seconds=3.0):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "predictions.jsonl").write_text(text, "utf-8")
    (folder / "results.json").write_text(json.dumps({"seconds": seconds, "examples": len(rows)}))
    return str(folder)


ROWS = {
    "asr": [
        {"id": "1089-134686-0000", "text": "he hoped  there would be stew", "words": [], "reference": "He hoped."},
        {"id": "LibriSpeech/test-clean/121/121726/121-121726-0003.flac", "text": "", "words": [], "reference": "x"},
    ],
    "ks": [
        {"id": "yes/0a7c2a8d_nohash_0.wav", "label": "no", "scores": {"no": 0.9, "yes": 0.1}},
        {"id": "/data/test/_silence_/1.wav", "label": "_silence_", "scores": {}},
        {"id": "_unknown_-bed_0c40e715_nohash_0.wav", "label": "_unknown_", "scores": {}},
    ],
    "sid": [{"id": "wav/id10001/1zcIwhmdeo4/00001.wav", "label": "id11251"}],
    "asv": [
        {"enrol": "id10270/x6uYqmx31kE/00001.wav", "test": "id10300/ize_eiCFEg0/00003.wav", "score": -0.25, "label": 0},
        {"enrol": "id10270/x6uYqmx31kE/00001.wav", "test": "id10270/8jEAjG6SegY/00008.wav", "score": 1e-7},
    ],
    "sd": [{"id": "1089-134686-0000_121-127105-0031"}, {"id": "wav/4077-13754-0001_5142-33396-0065.wav"}],
}


@pytest.fixture
def runs(tmp_path):
    """A run of every task of SUPERB's."""
    folders = {task: write_run(tmp_path / task, rows) for task, rows in ROWS.items()}
    (tmp_path / "sd/probabilities").mkdir()
    for i, row in enumerate(ROWS["sd"]):
        values = np.random.default_rng(i).random((40 + i, 2)).astype(np.float32)
        np.save(tmp_path / f"sd/probabilities/{Path(row['id']).stem}.npy", values)
    return folders


def superb(runs, tmp_path, tasks):
    out = tmp_path / "predict.zip"
    main(["superb", "--out", str(out), *(word for task in tasks for word in (f"--{task}", runs[task]))])
    return out


def complaint(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message.removeprefix("error: ").rstrip("\n")


# GLUE

CLASSES = {  # names by number, as the hub has them
    "cola": ["unacceptable", "acceptable"],
    "sst2": ["negative", "positive"],
    "mrpc": ["not_equivalent", "equivalent"],
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
    "mnli_m": ["entailment", "neutral", "contradiction"],
    "mnli_mm": ["entailment", "neutral", "contradiction"],
    "ax": ["entailment", "neutral", "contradiction"],
}
NUMBERED = ("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "WNLI.tsv")


def glue_run(folder, file, names, order=1):
    """A run that predicts class i % C for row i, or the value i - 1; its rows in another order."""
    ids = range(GLUE_FILES[file][0])[::order]
    rows = [{"id": str(i), "label": names[i % len(names)]} if names else {"id": str(i), "value": i - 1.0} for i in ids]
    return write_run(folder, rows)


def glue(tmp_path, **runs):
    out = tmp_path / "glue.zip"
    main(["glue", "--out", str(out), *(word for task, run in runs.items() for word in (f"--{task}", run))])
    return out


def file_of(task):
    names = {"cola": "CoLA", "sst2": "SST-2", "mnli_m": "MNLI-m", "mnli_mm": "MNLI-mm", "stsb": "STS-B"}
    return names.get(task, task.upper()) + ".tsv"


def test_glue_takes_what_we_write(tmp_path, capsys):
    runs = {task: glue_run(tmp_path / task, file_of(task), names, order=-1) for task, names in CLASSES.items()}
    runs["stsb"] = glue_run(tmp_path / "stsb", "STS-B.tsv", None)
    out = glue(tmp_path, **runs)
    found = check_glue(out)
    for task, names in CLASSES.items():
        written = ["0", "1"] if file_of(task) in NUMBERED else names
        assert found[file_of(task)] == [written[i % len(names)] for i in range(len(found[file_of(task)]))]
    assert found["STS-B.tsv"][:8] == ["0.000", "0.000", "1.000", "2.000", "3.000", "4.000", "5.000", "5.000"]
    assert set(found["QQP.tsv"]) == {"0"}
    assert capsys.readouterr().out == (
        f"{out}: cola, sst2, mrpc, stsb, mnli_m, mnli_mm, qnli, rte, wnli, ax\n"
        "one prediction for all rows, for want of a run: qqp\n"
    )


def test_a_class_may_be_a_number_already(tmp_path):
    found = check_glue(glue(tmp_path, wnli=glue_run(tmp_path / "wnli", "WNLI.tsv", ["1", "0"])))
    assert found["WNLI.tsv"][:3] == ["1", "0", "1"]


WNLI = [{"id": str(i), "label": "entailment"} for i in range(146)]
BAD_GLUE = {
    "too few": ("wnli", WNLI[:-1], "145 rows; should be those of wnli's test set, numbered 0 to 145"),
    "another numbering": (
        "wnli",
        [*WNLI[1:], {"id": "146", "label": "entailment"}],
        "146 rows; should be those of wnli",
    ),
    "too many": ("wnli", [*WNLI, {"id": "146", "label": "entailment"}], "147 rows; should be those of wnli"),
    "twice": ("wnli", [*WNLI, WNLI[3]], "two predictions for row 3; there should be one"),
    "another task": (
        "wnli",
        [{"id": "0", "label": "neutral"}],
        "wnli has the classes not_entailment, entailment, not 'n",
    ),
    "no names": ("mnli_m", [{"id": "0", "label": "LABEL_0"}], "mnli_m has the classes entailment, neutral, contra"),
    "a class for a value": ("stsb", [{"id": "0", "label": "3"}], r"line 1: .*with id, value \('value'\)"),
    "no value": ("stsb", [{"id": "0", "value": float("nan")}], "row 0 has the value nan; should be a number"),
}


@pytest.mark.parametrize("case", BAD_GLUE)
def test_glue_refuses(tmp_path, capsys, case):
    task, rows, message = BAD_GLUE[case]
    found = complaint(capsys, ["glue", f"--{task}", write_run(tmp_path / task, rows), "--out", f"{tmp_path}/g.zip"])
    assert found.startswith(f"{tmp_path}/{task}") and re.search(message, found)
    assert not (tmp_path / "g.zip").exists()


def test_glue_needs_a_run(capsys):
    assert complaint(capsys, ["glue"]).startswith("glue: no run; give one or more of --cola, --sst2, ")


# SUPERB


def test_superb_takes_what_we_write(runs, tmp_path, capsys):
    pytest.importorskip("h5py")
    out = superb(runs, tmp_path, ROWS)
    assert check_superb(out) == {"asr_public", "ks_public", "sid_public", "sv_public", "sd_public"}
    assert capsys.readouterr().out == (
        f"{out}: asr (2 of 2620), ks (3 of 3081), sid (1 of 8251), asv (2 of 37720), sd (2 recordings)\n"
    )
    with zipfile.ZipFile(out) as archive:
        text = {name: archive.read(name).decode() for name in archive.namelist() if not name.endswith(".h5")}
    assert text == {
        "predict/asr_public/predict.ark": "1089-134686-0000 HE HOPED THERE WOULD BE STEW\n121-121726-0003\n",
        "predict/ks_public/predict.txt": "yes-0a7c2a8d_nohash_0.wav no\n_silence_-1.wav _silence_\n"
        "_unknown_-bed_0c40e715_nohash_0.wav _unknown_\n",
        "predict/sid_public/predict.txt": "id10001-1zcIwhmdeo4-00001 id11251\n",
        "predict/sv_public/predict.txt": "id10270-x6uYqmx31kE-00001_id10300-ize_eiCFEg0-00003 -0.25\n"
        "id10270-x6uYqmx31kE-00001_id10270-8jEAjG6SegY-00008 1e-07\n",
        "predict/sd_public/frame_shift": "320\n",
    }


def test_activity_is_kept(runs, tmp_path):
    h5py = pytest.importorskip("h5py")
    with zipfile.ZipFile(superb(runs, tmp_path, ["sd"])) as archive:
        for row in ROWS["sd"]:
            name = Path(row["id"]).stem
            with archive.open(f"predict/sd_public/scoring/predictions/{name}.h5") as file, h5py.File(file) as hdf5:
                saved = np.load(tmp_path / f"sd/probabilities/{name}.npy")
                np.testing.assert_array_equal(hdf5["T_hat"][:], saved)


@pytest.mark.parametrize("task", ["asr", "ks", "sid", "asv", "sd"])
def test_any_task_alone(runs, tmp_path, task):
    if task == "sd":
        pytest.importorskip("h5py")
    (name,) = check_superb(superb(runs, tmp_path, [task]))
    assert name == f"{ {'asv': 'sv'}.get(task, task) }_public"


def test_transcripts_with_a_language_model_are_an_entry_of_their_own(runs, tmp_path):
    runs["asr"] = write_run(tmp_path / "lm", [row | {"text_lm": "He is better"} for row in ROWS["asr"]])
    out = superb(runs, tmp_path, ["asr"])
    assert check_superb(out) == {"asr_public", "asr_lm_public"}
    with zipfile.ZipFile(out) as archive:
        assert archive.read("predict/asr_lm_public/predict.ark").startswith(b"1089-134686-0000 HE IS BETTER\n")


BAD = {
    "another set": (
        "asr",
        [{"id": "test-0000.flac", "text": "one"}],
        "SUPERB takes lines like '1089-134686-0000 HE .*not 'test-0000 ONE'",
    ),
    "no text": ("asr", [{"id": "1089-134686-0000"}], r"predictions.jsonl, line 1: .*with id, text \('text'\)"),
    "unknown class": ("ks", [ROWS["ks"][0] | {"label": "marvin"}], "not 'yes-0a7c2a8d_nohash_0.wav marvin'"),
    "class by number": ("ks", [ROWS["ks"][0] | {"label": 3}], "line 1: label should be of type str, not 3"),
    "file without class": ("ks", [{"id": "0a7c2a8d_nohash_0.wav", "label": "no"}], "not '0a7c2a8d_nohash_0.wav no'"),
    "two predictions": ("ks", [ROWS["ks"][0], ROWS["ks"][0] | {"label": "go"}], "two predictions for yes-0a7c2a8d"),
    "speaker by number": ("sid", [ROWS["sid"][0] | {"label": "17"}], "not 'id10001-1zcIwhmdeo4-00001 17'"),
    "a space": ("sid", [{"id": "id10001/1zcIw mdeo4/00001.wav", "label": "id10001"}], "id10001-1zcIw mdeo4"),
    "no score": ("asv", [ROWS["asv"][0] | {"score": float("nan")}], "ize_eiCFEg0-00003 nan"),
    "no test clip": ("asv", [{"enrol": "id10270/x6uYqmx31kE/00001.wav", "score": 0.5}], "enrol, test, score"),
    "not a row": ("asr", [["1089-134686-0000", "he"]], "line 1: should be a JSON object with id, text"),
    "nothing": ("asr", [], "predictions.jsonl: no predictions"),
    "no probabilities": ("sd", [{"id": "other"}], r"probabilities/other.npy: no readable array"),
}


@pytest.mark.parametrize("case", BAD)
def test_superb_refuses(runs, tmp_path, capsys, case):
    task, rows, message = BAD[case]
    found = complaint(capsys, ["superb", f"--{task}", write_run(tmp_path / task, rows), "--out", f"{tmp_path}/p.zip"])
    assert found.startswith(f"{tmp_path}/{task}") and re.search(message, found)
    assert not (tmp_path / "p.zip").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 3), 0.5), r"float64 of shape \(4, 3\); should be floats of shape \(frames, 2\)"),
        (np.full((4, 2), 1), "int64 of shape"),
        (np.array([[0.5, -2.5]]), "-2.5 to 0.5; probabilities are from 0 to 1"),
        (np.array([[0.5, np.nan]]), "probabilities are from 0 to 1"),
        (np.array([[{}, 1]]), "no readable array"),  # pickled
    ],
)
def test_superb_refuses_what_are_not_probabilities(runs, tmp_path, capsys, values, message):
    file = tmp_path / f"sd/probabilities/{ROWS['sd'][0]['id']}.npy"
    np.save(file, values, allow_pickle=True)
    found = complaint(capsys, ["superb", "--sd", runs["sd"], "--out", f"{tmp_path}/p.zip"])
    assert found.startswith(f"{file}: ") and re.search(message, found)


def test_superb_needs_a_run(tmp_path, capsys):
    assert complaint(capsys, ["superb"]).startswith("superb: no run; ")
    assert complaint(capsys, ["superb", "--ks", f"{tmp_path}/none"]).startswith(
        f"{tmp_path}/none/predictions.jsonl: no such"
    )


def test_missing_h5py_is_an_error(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    message = complaint(capsys, ["superb", "--sd", runs["sd"], "--out", f"{tmp_path}/p.zip"])
    assert message == 'to write HDF5 takes h5py: pip install -e ".[h5]" in the clone of d2v'


# Open ASR


def open_asr(run, out, name="librispeech"):
    words = ["open_asr", "--run", run, "--model", "me/data2vec-mine", "--name", name, "--split", "test.clean"]
    return [*words, "--out", str(out)]


def test_open_asr_takes_what_we_write(runs, tmp_path):
    run = write_run(tmp_path / "asr", [row | {"seconds": 4.5} for row in ROWS["asr"]])
    main(open_asr(run, tmp_path / "results"))
    (file,) = (tmp_path / "results").iterdir()
    assert file.name == "MODEL_me-data2vec-mine_DATASET_hf-audio-open-asr-leaderboard_librispeech_test.clean.jsonl"
    rows = check_open_asr(file)
    first, second = ROWS["asr"]
    assert [row["pred_text"] for row in rows] == [first["text"], second["text"]]
    assert [row["text"] for row in rows] == ["He hoped.", "x"]  # as it is: neither case nor punctuation is touched
    assert [row["audio_filepath"] for row in rows] == [first["id"], second["id"]]
    # seconds heard over seconds taken, which is how the speed is scored
    assert sum(row["duration"] for row in rows) / sum(row["time"] for row in rows) == pytest.approx(9 / 3)


def test_open_asr_without_durations_or_a_name(runs, tmp_path):
    main([*open_asr(runs["asr"], tmp_path, name=""), "--dataset", "some/set"])
    (file,) = tmp_path.glob("*.jsonl")
    assert file.name == "MODEL_me-data2vec-mine_DATASET_some-set__test.clean.jsonl"
    assert [row["duration"] for row in check_open_asr(file)] == [None, None]


def test_open_asr_drops_what_has_no_reference(tmp_path):
    row = ROWS["asr"][0]
    rows = [row, row | {"reference": " "}, row | {"reference": "ignore time segment in scoring"}]
    main(open_asr(write_run(tmp_path / "asr", rows), tmp_path / "out"))
    (file,) = (tmp_path / "out").iterdir()
    assert len(check_open_asr(file)) == 1


def test_open_asr_takes_what_stood_there_and_what_was_heard_at_last(tmp_path):
    """A reference has the vocabulary's case, and not the signs that it lacks; `time` has the beam search in it."""
    row = ROWS["asr"][0] | {"reference": "ITS", "transcript": "It's", "text": "ITZ", "text_lm": "ITS"}
    ignored = [row | {"transcript": text} for text in ("IGNORE_TIME_SEGMENT_IN_SCORING", " - ")]
    main(open_asr(write_run(tmp_path / "asr", [row, *ignored]), tmp_path / "out"))
    (file,) = (tmp_path / "out").iterdir()
    (found,) = check_open_asr(file)
    assert (found["text"], found["pred_text"]) == ("It's", "ITS")


def test_what_only_some_rows_have_is_named(tmp_path, capsys):
    """A language model heard all rows or none."""
    rows = [ROWS["asr"][0], ROWS["asr"][1] | {"text_lm": "x"}]
    for some in (rows, rows[::-1]):
        run = write_run(tmp_path / "asr", some)
        line = 1 + some.index(ROWS["asr"][0])
        for arguments in (["superb", "--asr", run, "--out", str(tmp_path / "a.zip")], open_asr(run, tmp_path)):
            assert f"predictions.jsonl, line {line}: should be a JSON object with " in complaint(capsys, arguments)


def test_seconds_that_are_no_number_are_named(tmp_path, capsys):
    run = write_run(tmp_path / "asr", ROWS["asr"], seconds="3.0")
    assert complaint(capsys, open_asr(run, tmp_path)) == f"{run}/results.json: seconds should be a number, not '3.0'"
    run = write_run(tmp_path / "other", [row | {"seconds": "4"} for row in ROWS["asr"]])
    assert complaint(capsys, open_asr(run, tmp_path)).endswith("predictions.jsonl: seconds should be a number, not '4'")


def test_open_asr_refuses(runs, tmp_path, capsys):
    heard = write_run(tmp_path / "heard", [{"id": "a", "text": "b"}])
    assert complaint(capsys, open_asr(heard, tmp_path)).endswith("a JSON object with id, text, reference ('reference')")
    arguments = open_asr(runs["asr"], tmp_path)
    arguments[4] = "mine"
    assert complaint(capsys, arguments) == "model: should be a hub id like me/data2vec-mine, not 'mine'"


# The checkers themselves


def spoiled(out, name, change):
    """A copy of a zip with one file changed, or left out by None."""
    copy = out.with_name("spoiled.zip")
    with zipfile.ZipFile(out) as archive, zipfile.ZipFile(copy, "w") as target:
        for member in archive.namelist():
            data = archive.read(member)
            new, data = change(member, data) if member == name else (member, data)
            if new:
                target.writestr(new, data)
    return copy


SPOILED = {
    "folder": ("predict/ks_public/predict.txt", lambda name, data: ("ks_public/predict.txt", data)),
    "name": ("predict/ks_public/predict.txt", lambda name, data: ("predict/ks_public/predictions.txt", data)),
    "class": ("predict/ks_public/predict.txt", lambda name, data: (name, data + b"yes-1.wav maybe\n")),
    "path": ("predict/ks_public/predict.txt", lambda name, data: (name, data + b"yes/1.wav yes\n")),
    "twice": ("predict/ks_public/predict.txt", lambda name, data: (name, data + b"_silence_-1.wav yes\n")),
    "blank line": ("predict/ks_public/predict.txt", lambda name, data: (name, data + b"\n")),
    "no last line": ("predict/ks_public/predict.txt", lambda name, data: (name, data[:-1])),
    "small letters": ("predict/asr_public/predict.ark", lambda name, data: (name, data.lower())),
    "comma": ("predict/asr_public/predict.ark", lambda name, data: (name, data.replace(b" ", b",", 1))),
    "speaker": ("predict/sid_public/predict.txt", lambda name, data: (name, data.replace(b" id11251", b" 1250"))),
    "suffix": ("predict/sv_public/predict.txt", lambda name, data: (name, data.replace(b" ", b".wav "))),
    "score": ("predict/sv_public/predict.txt", lambda name, data: (name, data.replace(b"-0.25", b"inf"))),
    "seconds": ("predict/sd_public/frame_shift", lambda name, data: (name, b"0.02\n")),
    "no frame shift": ("predict/sd_public/frame_shift", lambda name, data: (None, b"")),
    "rttm": (
        f"predict/sd_public/scoring/predictions/{ROWS['sd'][0]['id']}.h5",
        lambda name, data: (name[:-3] + ".rttm", b""),
    ),
}


SPOILED_GLUE = {
    "missing": ("QQP.tsv", lambda name, data: (None, data)),
    "name": ("WNLI.tsv", lambda name, data: ("wnli.tsv", data)),
    "folder": ("WNLI.tsv", lambda name, data: (f"glue/{name}", data)),
    "no header": ("WNLI.tsv", lambda name, data: (name, data.partition(b"\n")[2])),
    "commas": ("WNLI.tsv", lambda name, data: (name, data.replace(b"\t", b","))),
    "short": ("RTE.tsv", lambda name, data: (name, data[:-2].rpartition(b"\n")[0] + b"\n")),
    "cut": ("RTE.tsv", lambda name, data: (name, data[:-1])),
    "order": ("RTE.tsv", lambda name, data: (name, data.replace(b"\n0\t", b"\n9\t"))),
    "numbers": ("RTE.tsv", lambda name, data: (name, data.replace(b"\tentailment", b"\t0"))),
    "names": ("WNLI.tsv", lambda name, data: (name, data.replace(b"\t1\n", b"\tentailment\n"))),
    "another task's": ("MNLI-m.tsv", lambda name, data: (name, data.replace(b"\tentailment", b"\tnot_entailment"))),
    "above 5": ("STS-B.tsv", lambda name, data: (name, data.replace(b"\n0\t0.000", b"\n0\t5.001"))),
    "no decimals": ("STS-B.tsv", lambda name, data: (name, data.replace(b"\n0\t0.000", b"\n0\t0"))),
}


@pytest.fixture(scope="module")
def packed_glue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    out = glue(folder, wnli=glue_run(folder / "wnli", "WNLI.tsv", ["0", "1"]))
    check_glue(out)
    return out


@pytest.mark.parametrize("case", SPOILED_GLUE)
def test_the_checker_of_glue_refuses(packed_glue, case):
    with pytest.raises(Refused):
        check_glue(spoiled(packed_glue, *SPOILED_GLUE[case]))


@pytest.mark.parametrize("case", SPOILED)
def test_the_checker_of_superb_refuses(runs, tmp_path, case):
    pytest.importorskip("h5py")
    out = superb(runs, tmp_path, ROWS)
    with pytest.raises(Refused):
        check_superb(spoiled(out, *SPOILED[case]))


@pytest.mark.parametrize(
    "arrays",
    [
        {"T": np.full((4, 2), 0.5)},
        {"T_hat": np.full((4, 3), 0.5)},
        {"T_hat": np.full((4, 2), 1)},
        {"T_hat": np.full((4, 2), -3.0)},
    ],
)
def test_the_checker_of_activity_refuses(tmp_path, arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    with pytest.raises(Refused):
        check_activity(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "change", [{"text": ""}, {"pred_text": None}, {"duration": 0.0}, {"time": "1 s"}, {"parent": "x"}]
)
def test_the_checker_of_open_asr_refuses(runs, tmp_path, change):
    main(open_asr(runs["asr"], tmp_path))
    (file,) = tmp_path.glob("*.jsonl")
    rows = [row | change for row in check_open_asr(file)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with pytest.raises(Refused):
        check_open_asr(file)


# The command line


def test_the_module_is_a_command(runs, tmp_path, monkeypatch):
    out = tmp_path / "predict.zip"
    monkeypatch.delitem(sys.modules, "d2v.leaderboards")
    monkeypatch.setattr(sys, "argv", ["leaderboards", "superb", "--ks", runs["ks"], "--out", str(out)])
    runpy.run_module("d2v.leaderboards", run_name="__main__")
    assert check_superb(out) == {"ks_public"}


@pytest.mark.parametrize("arguments", [[], ["superb", "--qbe", "x"], ["open_asr", "--model", "me/mine"], ["kaggle"]])
def test_a_wrong_command_line_is_an_error(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_a_run_that_is_empty_is_named(tmp_path, monkeypatch, capsys):
    write_run(tmp_path, [{"id": "a", "label": "yes"}])
    monkeypatch.chdir(tmp_path)
    for command, option, value in (("superb", "--ks", ""), ("glue", "--sst2", " "), ("ade20k", "--run", "")):
        message = complaint(capsys, [command, f"{option}={value}"])
        assert message.startswith(f"{option} is empty, such as a variable that is not set")


def test_a_line_is_a_row_whatever_is_in_it(tmp_path):
    rows = [{"id": "a", "text": "one\u2028two\x85\nthree"}, {"id": "b", "text": ""}]
    assert read_predictions(write_run(tmp_path, rows), id=str, text=str) == rows
