"""`recipes/audio_frame_classification.py` from end to end on tiny data: tones that take turns."""

import json

import datasets
import numpy as np
import pytest
import soundfile
import torch

from d2v.data.diarization import SegmentData, segments_to_frames
from d2v.data.rttm import read_rttm
from d2v.errors import InputError
from d2v.metrics.diarization import diarization_error
from tests.helpers import tiny_listener
from tests.recipes.common import evaluates_to_the_same, goes_on_exactly, logs_its_loss, predictions, runner
from tests.recipes.options import a_frozen_encoder_stays, adapters_open_in_transformers, collate_functions_pickle
from tests.tiny import TINY_AUDIO, flac, tones

run = runner("audio_frame_classification")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_AUDIO.items()]
SMALL = [*ARCH, "--data.batch_size=4", "--data.crop_seconds=0.9", "--optim.lr=2e-3", "--run.log_every=1"]
SPLITS = {"train": 8, "validation": 3, "test": 4}
HOP = 0.02


def turns(i: int) -> list[dict]:
    """Who speaks in the i-th recording: one from 0.1 s on, and the other before that one has ended."""
    first, second = ("low", "high") if i % 2 else ("high", "low")
    last = round(1.6 + 0.1 * (i % 4), 1)
    return [{"speaker": first, "start": 0.1, "end": 1.0}, {"speaker": second, "start": 0.7, "end": last}]


def sound(i: int) -> np.ndarray:
    """The recording, silent for a while at both ends."""
    clip = np.zeros(32_000, np.float32)
    for turn in turns(i):
        voice = tones({"low": "a", "high": "c"}[turn["speaker"]] * round(10 * (turn["end"] - turn["start"])), i)
        clip[round(16_000 * turn["start"]) :][: len(voice)] += voice
    return clip


def write(folder, who=turns, **changes):
    """Parquet files with `id`, `audio` and `turns`; `who(i)` gives the turns of a recording."""
    folder.mkdir(parents=True)
    for split, count in (SPLITS | changes).items():
        rows = {"id": [f"{split}-{i}" for i in range(count)]}
        rows |= {"audio": [{"bytes": flac(sound(i)), "path": None} for i in range(count)]}
        if who:
            rows |= {"turns": [who(i) for i in range(count)]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def rttm_lines(name: str, i: int) -> str:
    """What an RTTM file says of the i-th recording."""
    return "".join(
        f"SPEAKER {name} 1 {turn['start']} {turn['end'] - turn['start']:.1f} <NA> <NA> {turn['speaker']} <NA>\n"
        for turn in turns(i)
    )


def write_rttm(path, **changes):
    """An RTTM file of the recordings that `write` writes."""
    counts = (SPLITS | changes).items()
    path.write_text("".join(rttm_lines(f"{split}-{i}", i) for split, count in counts for i in range(count)))
    return path


def reference(split: str = "test") -> dict:
    return {f"{split}-{i}": [(t["start"], t["end"], t["speaker"]) for t in turns(i)] for i in range(SPLITS[split])}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "two")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=4", "--run.eval_every=2", pictures=True
    )


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert {"hypothesis.rttm", "probabilities", "timeline.png", "curves.png", "best"} <= {p.name for p in out.iterdir()}
    assert set(results) >= {"der", "der_collar_025", "miss", "false_alarm", "confusion", "frame_f1"}
    assert (results["split"], results["examples"], results["freeze"]) == ("test", 4, "nothing")
    found = {row["id"]: [(s["start"], s["end"], s["speaker"]) for s in row["segments"]] for row in predictions(out)}
    assert list(found) == [f"test-{i}" for i in range(4)]
    assert read_rttm(out / "hypothesis.rttm") == {name: segments for name, segments in found.items() if segments}
    assert {who for segments in found.values() for *_, who in segments} <= {"speaker_0", "speaker_1"}
    errors = diarization_error(reference(), found)  # what is written down is what was scored
    assert {key: results[key] for key in errors} == pytest.approx(errors, abs=1e-6)
    decision = json.loads((out / "best/diarization.json").read_text())
    assert decision == {"threshold": results["threshold"], "filter": results["filter"]}
    assert decision["threshold"] in (0.3, 0.4, 0.5, 0.6, 0.7) and decision["filter"] in (1, 11)


def test_two_baselines(trained):
    """Speech is 0.9 s and 0.9 to 1.2 s of 2 s: one voice all through is late at the ends, two are false on top."""
    speech = sum(turn["end"] - turn["start"] for i in range(4) for turn in turns(i))
    silent = sum(2 - turns(i)[1]["end"] + 0.1 for i in range(4))
    both = 2 * 2 * 4 - speech  # never wrong about who, always about how many
    assert trained[1]["der_always_both"] == pytest.approx(both / speech, abs=1e-4)
    longer = sum(max(0.9, turns(i)[1]["end"] - 0.7) for i in range(4))  # the one voice is taken for
    alone = (
        speech - sum(0.3 for i in range(4)) - longer
    )  # seconds of the other one alone: confused; the overlap is missed
    assert trained[1]["der_always_one"] == pytest.approx((silent + 0.3 * 4 + alone) / speech, abs=1e-4)


def test_evaluate_repeats_the_figures(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}"], tmp_path)
    assert (tmp_path / "hypothesis.rttm").read_text() == (trained[0] / "hypothesis.rttm").read_text()


def test_the_threshold_is_the_models(trained, data, tmp_path):
    """Above all probabilities, nobody speaks."""
    import shutil

    model = shutil.copytree(trained[0] / "best", tmp_path / "model")
    (model / "diarization.json").write_text('{"threshold": 1.0, "filter": 1}')
    results = run("--mode=evaluate", f"--model={model}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert (results["miss"], results["frame_f1"], results["threshold"]) == (1, 0, 1)


def test_predict_needs_no_labels(trained, tmp_path):
    soundfile.write(tmp_path / "two words.wav", sound(0), 16_000)
    run("--mode=predict", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}")
    (row,) = predictions(tmp_path / "out")
    assert row["id"].endswith("two words.wav") and set(row) == {"id", "segments"}
    assert np.load(tmp_path / "out/probabilities/two_words.npy").shape == (99, 2)  # 2 s
    assert set(read_rttm(tmp_path / "out/hypothesis.rttm") if row["segments"] else {}) <= {"two_words"}


def test_best_opens_in_transformers(trained):
    import transformers

    folder = trained[0] / "best"
    model = transformers.AutoModelForAudioFrameClassification.from_pretrained(folder).eval()
    inputs = transformers.AutoFeatureExtractor.from_pretrained(folder)(
        sound(2), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits.sigmoid()[0].numpy()
    found = np.load(trained[0] / "probabilities/test-2.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)  # the recording was stored in 16 bits


def test_a_stopped_run_goes_on_exactly(data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}"], tmp_path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_listener(tmp_path_factory.mktemp("base") / "model")


def test_adapters(base, data, tmp_path):
    x = torch.from_numpy(sound(0))[None]
    args, name = [*SMALL, f"--data.path={data}"], "Data2VecAudioForAudioFrameClassification"
    adapters_open_in_transformers(run, name, base, args, x, tmp_path)


def test_a_frozen_encoder(base, data, tmp_path):
    a_frozen_encoder_stays(run, base, [*SMALL, f"--data.path={data}"], "data2vec_audio.", tmp_path)


@pytest.mark.parametrize("task", ["diarization", "frames"])
def test_collate_functions_pickle(task, data, tmp_path, monkeypatch):
    collate_functions_pickle(run, [*SMALL, f"--task={task}", f"--data.path={data}"], tmp_path, monkeypatch)


def test_the_labels_are_cut_with_the_sound(data, tmp_path, monkeypatch):
    import d2v.processors.audio

    inputs, targets, call = [], [], d2v.processors.audio.AudioFeatureExtractor.__call__
    loss = torch.nn.functional.binary_cross_entropy_with_logits

    def extract(self, clips):
        inputs.append(clips)
        return call(self, clips)

    def spy(logits, labels):
        if torch.is_grad_enabled():  # else it is the validation loss
            targets.append(labels)
        return loss(logits, labels, reduction="sum"), torch.tensor(labels.numel())

    monkeypatch.setattr(d2v.processors.audio.AudioFeatureExtractor, "__call__", extract)
    monkeypatch.setattr("d2v.losses.pit_bce", spy)
    run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path}", "--run.max_steps=2", "--run.eval_every=2")
    lengths = [{len(clip) for clip in clips} for clips in inputs]
    first = lengths.index({14_400})  # before it the evaluation is tried
    assert lengths[first : first + 2] == [{14_400}] * 2 and lengths.count({32_000}) == len(lengths) - 2
    for clips, labels in zip(inputs[first : first + 2], targets, strict=True):
        for clip, active in zip(clips, labels.numpy(), strict=True):
            loud = np.abs(clip[: 320 * len(active)].reshape(-1, 320)).mean(axis=1) > 0.05  # the tones' frames
            assert (loud == active.any(axis=1)).mean() >= 1 - 3 / len(active)  # a frame at each edge is half a tone
            assert active.any()


def test_it_learns_who_is_low_and_who_is_high(data, tmp_path):
    still = [f"--arch.{key}=0.0" for key in ("layerdrop", "mask_time_prob", "activation_dropout", "hidden_dropout")]
    # Of parts in which one alone speaks nobody learns which output is whose.
    steps = ["--run.max_steps=60", "--data.crop_seconds=2", "--freeze=nothing", "--optim.lr=4e-3"]
    results = run(*SMALL, *still, *steps, f"--data.path={data}", f"--run.out={tmp_path}")
    assert results["der"] < 0.15 < 0.5 * min(results["der_always_one"], results["der_always_both"])


def test_an_rttm_file_is_as_good_as_a_column(trained, tmp_path):
    data, rttm = write(tmp_path / "data", who=None), write_rttm(tmp_path / "turns.rttm")
    few = ["--run.max_steps=4", "--run.eval_every=2", f"--data.rttm={rttm}"]
    results = run(*SMALL, *few, f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert results["der"] == pytest.approx(trained[1]["der"], abs=1e-9)


def test_rttm_files_beside_sounds_are_found(tmp_path):
    """As AMI has them, one for each recording; where there is a table, it says."""
    for split in ("train", "dev", "test"):
        (tmp_path / f"data/{split}").mkdir(parents=True)
        for i in range(3):
            (tmp_path / f"data/{split}/{split}-{i}.flac").write_bytes(flac(sound(i)))
            (tmp_path / f"data/{split}/{split}-{i}.rttm").write_text(rttm_lines(f"{split}-{i}", i))
    results = run(*SMALL, f"--data.path={tmp_path / 'data'}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    assert (results["split"], results["examples"]) == ("test", 3)
    assert np.isfinite(results["der"]) and "rttm: " in (tmp_path / "out/config.yaml").read_text("utf-8")
    assert SegmentData(path=str(tmp_path / "data")).rttm == str(tmp_path / "data")
    (tmp_path / "data/metadata.csv").write_text("file_name\n")
    assert SegmentData(path=str(tmp_path / "data")).rttm is None


def test_without_test_validation_is_scored(tmp_path):
    data = write(tmp_path / "data")
    (data / "test.parquet").unlink()
    results = run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    assert (results["split"], results["examples"]) == ("validation", 3)


@pytest.mark.parametrize("key", ["null", "speaker"])
def test_frames_have_classes(key, data, tmp_path):
    """Voice activity, or tones by name: no order to be found, and the same evaluation from the model alone."""
    args = [f"--data.path={data}", f"--data.label_key={key}"]
    steps = ["--task=frames", "--run.max_steps=40", "--optim.lr=4e-3", "--freeze=nothing", "--arch.layerdrop=0.0"]
    results = run(*SMALL, *args, *steps, f"--run.out={tmp_path / 'out'}")
    assert "der" not in results and 0.85 < results["frame_f1"] <= 1
    names = {"null": ["speech"], "speaker": ["high", "low"]}[key]
    assert np.load(tmp_path / "out/probabilities/test-0.npy").shape == (99, len(names))
    rows = predictions(tmp_path / "out")
    pairs = [
        [
            segments_to_frames([(s["start"], s["end"], s["speaker"]) for s in row["segments"]], names, 99, HOP)
            for row in rows
        ],
        [
            segments_to_frames(
                [(*times, who if key == "speaker" else "speech") for *times, who in segments], names, 99, HOP
            )
            for segments in reference().values()
        ],
    ]
    found, real = (np.concatenate(side).astype(bool) for side in pairs)
    assert results["frame_f1"] == pytest.approx(2 * (found & real).sum() / (found.sum() + real.sum()))
    evaluates_to_the_same(run, tmp_path / "out", results, args, tmp_path / "again")


def changed(**values):
    """Turns of which, in the recording number 1, the second is another."""
    return lambda i: [turns(i)[0], turns(i)[1] | (values if i == 1 else {})]


BAD_TURNS = {
    "negative": (changed(start=-0.5), "row 1: a segment from -0.5 to 1.7 s; should begin at 0 or later"),
    "end before start": (changed(end=0.5), "row 1: a segment from 0.7 to 0.5 s; should .* end after that"),
    "beyond the clip": (changed(start=2.1, end=2.5), "row 1: a segment from 2.1 to 2.5 s; the clip ends at 2 s"),
    "three speakers": (
        lambda i: [*turns(i), {"speaker": "third", "start": 1.0, "end": 1.2}][: 3 if i == 1 else 2],
        r"row 1: 3 speakers; the model has 2 \(arch.num_labels\)",
    ),
    "no speaker": (changed(speaker=None), "row 1: turns has .*'speaker': None.*; a segment has start, end, speaker"),
    "no turns": (
        lambda i: None if i == 1 else turns(i),
        "row 1: turns is None; should be a list of segments with start",
    ),
}


@pytest.mark.parametrize("case", BAD_TURNS)
def test_bad_turns_are_named_or_left_out(case, tmp_path, capsys):
    who, message = BAD_TURNS[case]
    data = write(tmp_path / "data", who=who, train=5, validation=1, test=1)
    args = [*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1"]
    with pytest.raises(InputError, match=f"train, {message}") as caught:
        run(*args)
    assert "\n" not in str(caught.value)
    run(*args, "--data.bad_rows=skip")
    assert "train: 1 of 5 rows left out" in capsys.readouterr().out


def test_long_recordings_in_windows(trained, data, tmp_path):
    """A window over all changes nothing; shorter ones give as many frames."""
    whole = trained[1]
    for seconds, same in ((10, True), (0.8, False)):
        args = ["--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={data}"]
        out = tmp_path / str(seconds)
        results = run(*args, f"--run.out={out}", f"--data.chunk_seconds={seconds}")
        assert results["der"] == whole["der"] or not same
        for path in (out / "probabilities").iterdir():
            values = np.load(path)
            assert values.shape == np.load(trained[0] / "probabilities" / path.name).shape


def test_silence_has_no_error_rate_and_short_turns_none_with_a_collar(trained, tmp_path):
    for name, who in {"silence": lambda i: [], "short": lambda i: [{"speaker": "a", "start": 1.0, "end": 1.4}]}.items():
        data, out = write(tmp_path / name, who=who), tmp_path / f"{name}-out"
        results = run("--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={out}")
        assert results["der_collar_025"] is None and 0 <= results["frame_f1"] <= 1
        assert (results["der"] is None) == (name == "silence") == (results["der_always_one"] is None)
        assert json.loads((out / "results.json").read_text("utf-8")) == results


def test_more_speakers_than_the_model_has_can_be_scored(trained, tmp_path):
    data = write(tmp_path / "data", who=lambda i: [*turns(i), {"speaker": "third", "start": 1.0, "end": 1.5}])
    results = run(
        "--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}"
    )
    assert results["miss"] > 0


def test_bad_options_are_named(data, tmp_path):
    rttm = tmp_path / "other.rttm"
    rttm.write_text(write_rttm(tmp_path / "short.rttm", train=7).read_text().replace("train-", "other-"))
    (tmp_path / "bad.rttm").write_text(rttm.read_text() + "SPEAKER train-7 1 0.0 one <NA> <NA> low <NA> <NA>\n")
    cases = {
        f"--data.rttm={rttm}": "train, row 0: data.rttm has no recording 'train-0'; it has other-0, other-1",
        f"--data.rttm={tmp_path / 'bad.rttm'}": "bad.rttm, line 29: onset 0.0, duration one; should be seconds",
        "--data.rttm=nowhere.rttm": "nowhere.rttm: not a readable text file",
        "--data.label_key=name": "train, row 0: turns has .*; a segment has start, end, name .data.label_key.",
        "--data.segments_column=segments": "no column 'segments' .data.segments_column.; there are id, audio, turns",
        "--data.crop_seconds=0": "data.crop_seconds should be above 0",
        "--arch.num_labels=1": "row 0: 2 speakers; the model has 1",
    }
    for option, message in cases.items():
        with pytest.raises(InputError, match=message):
            run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", option)
    with pytest.raises(InputError, match="train: has no segment; data.segments_column, data.label_key"):
        run(*SMALL, "--task=frames", f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--data.label_key=name")


def test_recordings_need_names_of_their_own(trained, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "one.wav", sound(0), 16_000)
    with pytest.raises(InputError, match=r"test: .*a/one.wav and .*b/one.wav are both called one"):
        run(
            "--mode=predict",
            f"--model={trained[0] / 'best'}",
            f"--data.path={tmp_path}",
            f"--run.out={tmp_path / 'out'}",
        )
