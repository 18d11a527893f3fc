"""`recipes/speaker_verification.py` from end to end on tiny data."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from d2v.decode import verification
from d2v.errors import InputError
from d2v.processors.audio import load_audio
from tests.helpers import tiny_listener
from tests.recipes.common import evaluates_to_the_same, goes_on_exactly, logs_its_loss, predictions, runner
from tests.recipes.options import a_frozen_encoder_stays, adapters_open_in_transformers, collate_functions_pickle
from tests.tiny import TINY_AUDIO, flac

run = runner("speaker_verification")
HEAD = {"tdnn_dim": [16, 16, 24], "tdnn_kernel": [3, 3, 1], "tdnn_dilation": [1, 1, 1], "xvector_output_dim": 8}
ARCH = [f"--arch.{key}={value}" for key, value in (TINY_AUDIO | HEAD).items()]
SMALL = [*ARCH, "--data.batch_size=8", "--optim.lr=5e-3", "--run.log_every=1"]
SPLITS = {"train": 32, "validation": 8, "test": 8}
PITCH = {"ann": 300, "bob": 700, "cid": 1500, "dot": 2600}
SPEAKERS = list(PITCH)


def voice(speaker: str, i: int) -> np.ndarray:
    """A speaker's tone, a little off pitch, 0.3 to 0.6 s: (S,) at 16 kHz."""
    noise = np.random.default_rng(i)
    time = np.arange(1600 * (3 + i % 4)) / 16_000
    return 0.3 * np.sin(2 * np.pi * PITCH[speaker] * noise.uniform(0.95, 1.05) * time) + noise.normal(
        0, 0.01, time.shape
    )


def write(folder, speakers=SPEAKERS, **changes):
    """Parquet files with `id`, `audio` and `speaker`, who take turns.

    Args:
        folder: to be made.
        speakers: their names.
        **changes: the number of rows of a split, or its rows.
    """
    folder.mkdir(parents=True)
    for split, rows in (SPLITS | changes).items():
        if isinstance(rows, int):
            rows = [row(speakers[i % len(speakers)], f"{split}-{i}", i) for i in range(rows)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def row(speaker: str | None, name: str, i: int = 0) -> dict:
    """A clip of someone, or of Ann where nobody knows."""
    sound = flac(voice(speaker or "ann", i))
    return {"id": name, "audio": {"bytes": sound, "path": f"{speaker}/{name}.flac"}, "speaker": speaker}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "four")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out, steps = tmp_path_factory.mktemp("run") / "out", ["--run.max_steps=60", "--run.eval_every=20"]
    more = ["--freeze=nothing", "--arch.layerdrop=0.0", "--arch.mask_time_prob=0.0"]
    return out, run(*SMALL, *steps, *more, f"--data.path={data}", f"--run.out={out}", pictures=True)


def use(trained, mode, out, *args):
    """Run the trained model in another mode; returns the results and the predictions."""
    results = run(f"--mode={mode}", f"--model={trained[0] / 'best'}", f"--run.out={out}", *args)
    return results, predictions(out)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    assert {"results.json", "predictions.jsonl", "scores.txt", "det.png", "curves.png"} <= {
        p.name for p in out.iterdir()
    }
    assert set(results) >= {"eer", "min_dcf_001", "min_dcf_005"} and results["split"] == "test"
    logs_its_loss(out)  # of speakers who were trained
    notes = {"trials": "sampled from test", "center": False, "s_norm": 0, "freeze": "nothing"}
    assert {key: results[key] for key in notes} == notes
    # Eight clips of four speakers: 4 pairs of one speaker, and as many of the 24 others.
    rows = predictions(out)
    assert results["examples"] == len(rows) == 8 and sum(row["label"] for row in rows) == 4
    number = {f"test-{i}": i for i in range(8)}
    for row in rows:
        assert row["label"] == (number[row["enrol"]] % 4 == number[row["test"]] % 4)
    lines = [line.split() for line in (out / "scores.txt").read_text().splitlines()]
    assert [line[1:] for line in lines] == [[row["enrol"], row["test"]] for row in rows]
    assert [float(line[0]) for line in lines] == pytest.approx([(row["score"] + 1) / 2 for row in rows], abs=1e-6)
    assert load_file(out / "best/cohort.safetensors")["embeddings"].shape == (4, 8)


def test_it_tells_the_speakers_apart(trained):
    assert trained[1]["eer"] <= 0.1
    scores = [[row["score"] for row in predictions(trained[0]) if row["label"] == label] for label in (0, 1)]
    assert np.mean(scores[1]) - np.mean(scores[0]) > 0.03


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)


def test_a_clip_scores_the_same_in_any_batch(trained, data, tmp_path):
    _, alone = use(trained, "evaluate", tmp_path, f"--data.path={data}", "--data.batch_size=1")
    together = [row["score"] for row in predictions(trained[0])]
    assert [row["score"] for row in alone] == pytest.approx(together, abs=1e-5)


def test_best_opens_in_transformers(trained):
    """Hugging Face's embedding of a clip alone is ours: the heads differ in what comes after it."""
    import transformers

    model = transformers.AutoModelForAudioXVector.from_pretrained(trained[0] / "best").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(trained[0] / "best")

    def embedding(name):
        i = int(name.removeprefix("test-"))
        sound = load_audio(flac(voice(SPEAKERS[i % 4], i)))
        inputs = extractor(sound, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            return model(**inputs).embeddings[0]

    rows = predictions(trained[0])
    theirs = [float(torch.cosine_similarity(embedding(row["enrol"]), embedding(row["test"]), dim=0)) for row in rows]
    assert [row["score"] for row in rows] == pytest.approx(theirs, abs=1e-5)


def test_the_cohort_centres_and_normalises(trained, data, tmp_path, monkeypatch):
    """Each training speaker's mean embedding is kept with the model, and scores are taken relative to these."""
    seen, score_trials = {}, verification.score_trials

    def spy(embeddings, trials, cohort, **options):
        seen.update(embeddings=embeddings, trials=trials)
        return score_trials(embeddings, trials, cohort, **options)

    monkeypatch.setattr(verification, "score_trials", spy)
    args = [f"--data.path={data}", "--data.test_split=train", "--center=true", "--s_norm=3"]
    results, rows = use(trained, "evaluate", tmp_path, *args)
    assert (results["center"], results["s_norm"]) == (True, 3)
    cohort = load_file(trained[0] / "best/cohort.safetensors")["embeddings"].numpy()
    embeddings = np.stack([seen["embeddings"][row] for row in range(32)])
    means = [embeddings[speaker::4].mean(axis=0) for speaker in range(4)]
    np.testing.assert_allclose(cohort, means, rtol=1e-4, atol=1e-6)
    options = {"mean": cohort.mean(axis=0)}
    cosines = verification.cosine_scores(seen["embeddings"], seen["trials"], **options)
    expected = verification.s_norm(cosines, seen["embeddings"], seen["trials"], cohort, **options, top=3)
    assert [row["score"] for row in rows] == pytest.approx(expected.tolist())


def test_without_a_cohort_there_is_nothing_to_centre_on(trained, data, tmp_path):
    folder = shutil.copytree(trained[0] / "best", tmp_path / "model")
    (folder / "cohort.safetensors").unlink()
    args = ["--mode=evaluate", f"--model={folder}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}"]
    for option in ("--center=true", "--s_norm=2"):
        with pytest.raises(InputError, match=r"model: no cohort\.safetensors.*training writes it"):
            run(*args, option)
    save_file({"embeddings": torch.zeros(3, 5)}, folder / "cohort.safetensors")
    with pytest.raises(InputError, match=r"cohort\.safetensors: should hold embeddings of shape \(speakers, 8\)"):
        run(*args, "--center=true")


@pytest.mark.parametrize("form", ["ids", "files", "ends of paths"])
def test_a_list_of_trials(form, trained, tmp_path):
    """It is scored in its order, by its names, and needs nobody to know the speakers."""
    folder = write(tmp_path / "data")
    for split in SPLITS:
        path = str(folder / f"{split}.parquet")
        datasets.Dataset.from_parquet(path).remove_columns("speaker").to_parquet(path)
    call = {
        "ids": lambda i: f"test-{i}",
        "files": lambda i: f"{SPEAKERS[i % 4]}/test-{i}.flac",
        "ends of paths": lambda i: f"test-{i}.flac",
    }[form]
    lines = [f"{int(a % 4 == b % 4)} {call(a)} {call(b)}" for a, b in ((5, 1), (0, 7), (3, 7), (2, 2))]
    (tmp_path / "trials.txt").write_text("\n".join(lines) + "\n")
    args = [f"--data.path={folder}", f"--data.trials={tmp_path / 'trials.txt'}"]
    results, rows = use(trained, "evaluate", tmp_path / "out", *args)
    assert (results["trials"], results["examples"]) == ("trials.txt", 4)
    assert [f"{row['label']} {row['enrol']} {row['test']}" for row in rows] == lines
    scores = [line.split() for line in (tmp_path / "out/scores.txt").read_text().splitlines()]
    assert [line[1:] for line in scores] == [line.split()[1:] for line in lines]
    assert rows[3]["score"] == pytest.approx(1)  # a clip with itself
    _, pairs = use(trained, "predict", tmp_path / "all", f"--data.path={folder}")
    pair = next(row for row in pairs if (row["enrol"], row["test"]) == ("test-1", "test-5"))
    assert rows[0]["score"] == pytest.approx(pair["score"])


def test_predict_needs_no_labels(trained, tmp_path):
    for name, speaker in (("x", "bob"), ("y", "dot"), ("z", "bob")):
        soundfile.write(tmp_path / f"{name}.wav", voice(speaker, 0), 16_000)
    results, rows = use(trained, "predict", tmp_path / "all", f"--data.path={tmp_path}")
    assert [Path(row["enrol"]).stem + Path(row["test"]).stem for row in rows] == ["xy", "xz", "yz"]
    assert rows[1]["score"] == pytest.approx(1) and rows[0]["score"] < 0.99 and "eer" not in results
    assert not (tmp_path / "all/det.png").exists()
    (tmp_path / "trials.txt").write_text("z.wav y.wav\n")
    _, listed = use(
        trained, "predict", tmp_path / "one", f"--data.path={tmp_path}", f"--data.trials={tmp_path}/trials.txt"
    )
    assert listed == [{"enrol": "z.wav", "test": "y.wav", "score": pytest.approx(rows[2]["score"])}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_listener(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("variant", ["normalized", "corrected", "documented"])
def test_adapters(variant, base, data, tmp_path):
    """The head that was trained is folded, in the adapter too."""
    x = torch.from_numpy(voice("bob", 0)).float()[None]
    args = [*SMALL, f"--arch.xvector_variant={variant}", f"--data.path={data}"]
    adapters_open_in_transformers(run, "Data2VecAudioForXVector", base, args, x, tmp_path)
    config = json.loads((tmp_path / "best/config.json").read_text())
    assert config["xvector_variant"] == {"normalized": "corrected"}.get(variant, variant)


def test_a_frozen_encoder(base, data, tmp_path):
    a_frozen_encoder_stays(run, base, [*SMALL, f"--data.path={data}"], "data2vec_audio.", tmp_path)


def test_collate_functions_pickle(data, tmp_path, monkeypatch):
    args = [*SMALL, f"--data.path={data}", "--data.crop_seconds=0.25"]
    collate_functions_pickle(run, args, tmp_path, monkeypatch)


def test_a_batch_of_one_clip_trains(tmp_path):
    """Nine clips in batches of four leave one."""
    data = write(tmp_path / "nine", train=9)
    run(*SMALL, f"--data.path={data}", "--data.batch_size=4", "--run.max_steps=3", f"--run.out={tmp_path / 'out'}")
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [entry["skipped"] for entry in log if "skipped" in entry] == [0, 0, 0]


def test_a_stopped_run_goes_on_exactly(data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", "--data.crop_seconds=0.25"], tmp_path)


def test_held_out_speakers_are_in_test_alone(tmp_path):
    data = write(tmp_path / "data", test=16)
    held = ["--data.held_out_speakers=[bob, dot]", "--run.max_steps=1"]
    results = run(*SMALL, *held, f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    tested = {row[clip] for row in predictions(tmp_path / "out") for clip in ("enrol", "test")}
    assert tested == {f"test-{i}" for i in range(16) if SPEAKERS[i % 4] in ("bob", "dot")}
    assert results["examples"] == 24  # twice six pairs of four clips, and as many of the sixteen across
    config = json.loads((tmp_path / "out/best/config.json").read_text())
    assert config["id2label"] == {"0": "ann", "1": "cid"}


def test_bad_rows_are_named_or_left_out(trained, tmp_path, capsys):
    rows = [row(SPEAKERS[i % 4], f"train-{i}", i) for i in range(8)]
    short = flac(np.zeros(1999, dtype=np.float32))  # five frames; the TDNN leaves one of them, which has no deviation
    bad = {
        "short": (rows[1] | {"audio": {"bytes": short, "path": None}}, r"row 1: 0\.125 s of sound; a clip has 0\.125"),
        "nobody": (rows[1] | {"speaker": None}, "row 1: speaker is None; should be a name or number"),
    }
    for case, (bad_row, message) in bad.items():
        data = write(tmp_path / case, train=[rows[0], bad_row, *rows[2:]])
        args = [*SMALL, f"--data.path={data}", f"--run.out={tmp_path / case / 'out'}", "--run.max_steps=1"]
        with pytest.raises(InputError, match=f"train, {message}"):
            run(*args)
        run(*args, "--data.bad_rows=skip")
        assert "train: 1 of 8 rows left out" in capsys.readouterr().out


def test_one_speaker_is_not_enough(data, tmp_path):
    one = write(tmp_path / "one", speakers=["ann"])
    args = [*SMALL, "--run.max_steps=1", f"--run.out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match="train: speaker has 1 classes: ann; should have two or more"):
        run(*args, f"--data.path={one}")
    (one / "train.parquet").write_bytes((data / "train.parquet").read_bytes())
    with pytest.raises(InputError, match="test: 8 clips of 1 speakers; trials need two speakers, and one who has two"):
        run(*args, f"--data.path={one}")


BAD_OPTIONS = {
    "no list": (None, ["--data.trials=nowhere.txt"], r"nowhere\.txt: not a readable text file"),
    "no clip": ("1 test-0 test-4\n0 test-0 train-0\n", [], r"trials\.txt, line 2: there is no clip 'train-0'"),
    "no label": ("test-0 test-4\n", [], r"trials\.txt, line 1: should be <1 or 0> <enrolment clip> <test clip>"),
    "no others": ("1 test-0 test-4\n", [], r"trials\.txt: all trials are labelled 1; some should be 1, .*others 0"),
    "no column": (
        None,
        ["--data.speaker_column=who"],
        r"no column 'who' \(data\.speaker_column\); there are id, audio",
    ),
    "no such speaker": (None, ["--data.held_out_speakers=[eve]"], "test: no speaker 'eve' .*; there are ann, bob, cid"),
    "short crops": (None, ["--data.crop_seconds=0.1"], r"data\.crop_seconds 0\.1: .* take 0\.125 s"),
    "a cohort of one": (None, ["--s_norm=1"], "s_norm should be 0, or at least 2 speakers, not 1"),
    "one trial": (None, ["--data.sampled_trials=1"], r"data\.sampled_trials should be at least 2, not 1"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_named(case, data, tmp_path):
    trials, args, message = BAD_OPTIONS[case]
    if trials:
        (tmp_path / "trials.txt").write_text(trials)
        args = [f"--data.trials={tmp_path / 'trials.txt'}"]
    with pytest.raises(InputError, match=message) as caught:
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", *args)
    assert "\n" not in str(caught.value)
