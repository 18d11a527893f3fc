"""Trials: files, samples, and the clips that they name."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2v.data.rows import Rows
from d2v.data.verification import (
    TrialData,
    all_trials,
    choose_trials,
    cohort_clips,
    embedded_trials,
    first_clips,
    number_clips,
    read_speakers,
    read_trials,
    sample_trials,
    sampled_trials,
    shortest_clip,
    speaker_head,
    speaker_problem,
)
from d2v.errors import InputError
from d2v.models.audio import Data2VecAudioConfig
from tests.helpers import make_job, make_split

TRIALS = [(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")]


def test_a_list_of_trials(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/1.wav a/2.wav\n\n0\ta/1.wav  b/1.wav\r\n")
    assert read_trials(path) == read_trials(path, {"a/1.wav", "a/2.wav", "b/1.wav"}) == TRIALS
    with pytest.raises(InputError, match=r"trials\.txt, line 3: there is no clip 'b/1\.wav'"):
        read_trials(path, {"a/1.wav", "a/2.wav"})
    path.write_text("a/1.wav a/2.wav\n1 b/1.wav\n")  # nobody knows the answers
    assert read_trials(path) == [(None, "a/1.wav", "a/2.wav"), (None, "1", "b/1.wav")]


def test_pairs_with_both_labels_are_noted(tmp_path):
    (tmp_path / "trials.txt").write_text("1 a b\n0 b a\n1 a c\n1 a c\n0 b c\n")
    job = make_job(TrialData())
    assert len(read_trials(tmp_path / "trials.txt", labelled=True, job=job)) == 5
    ((fact, rows, first),) = [(each["fact"], each["rows"], each["first"]) for each in job.facts]
    assert (fact, rows, [*first]) == ("trials labelled twice", 1, ["a", "b"])


@pytest.mark.parametrize(
    "text",
    [
        "1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n",
        "\ufefftarget a/1.wav a/2.wav\nnontarget a/1.wav b/1.wav\n",
        "a/1.wav a/2.wav target\na/1.wav b/1.wav nontarget\n",
        "a/1.wav\ta/2.wav\t1\r\na/1.wav\tb/1.wav\t0\r\n",
        "1,a/1.wav,a/2.wav\n0,a/1.wav,b/1.wav\n",
        '1,"a/1.wav","a/2.wav"\n0,"a/1.wav","b/1.wav"\n',
        "a/1.wav, a/2.wav, tgt\na/1.wav, b/1.wav, imp\n",
        "enrol,test,label\na/1.wav,a/2.wav,1\na/1.wav,b/1.wav,0\n",
        "label enrol test\nTRUE a/1.wav a/2.wav\nFALSE a/1.wav b/1.wav\n",
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_trials_as_others_write_them(text, labelled, tmp_path):
    (tmp_path / "trials.txt").write_text(text, "utf-8")
    clips = {"a/1.wav", "a/2.wav", "b/1.wav"}
    assert read_trials(tmp_path / "trials.txt", clips, labelled=labelled) == TRIALS


def test_trials_of_clips_that_were_left_out(tmp_path, capsys):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n1 c.wav a/1.wav\n0 a/1.wav d.wav\n")
    clips = {"a/1.wav", "a/2.wav", "b/1.wav"}
    with pytest.raises(InputError, match=r"trials\.txt, line 3: there is no clip 'c.wav'; 2 such trials of 4"):
        read_trials(path, clips, job=make_job(TrialData()))
    assert read_trials(path, clips, job=make_job(TrialData(bad_rows="skip"))) == TRIALS
    assert "2 of 4 trials left out; the first is" in capsys.readouterr().out

    trials, job = [(1, 0, 1), (0, 0, 2), (0, 1, 2)], make_job(TrialData())
    assert embedded_trials(job, {0, 1, 2}, trials, TRIALS[:1] * 3) == (trials, TRIALS[:1] * 3) and not job.facts
    assert embedded_trials(job, {0, 1}, trials) == (trials[:1], [])
    assert job.facts[0]["line"] == "2 of 3 trials left out, of clips that cannot be decoded"
    with pytest.raises(InputError, match="3 of 3 trials left out"):
        embedded_trials(job, {2}, trials)
    with pytest.raises(InputError, match="no pair of clips"):
        embedded_trials(job, {0}, [])


def test_parts_of_one_file_go_by_their_own_names():
    assert number_clips(["x/a.wav", "x/a.wav", "x/b.wav"]).keys() == {"x/b.wav", "b.wav"}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("1 a.wav b.wav", "a.wav b.wav", "should be <1 or 0> <enrolment clip> <test clip>"),
        ("1 a.wav b.wav", "1 a.wav b.wav c.wav", "should be <1 or 0>"),
        ("a.wav b.wav target", "a.wav b.wav maybe", "should be <enrolment clip> <test clip> <1 or 0>"),
        ("a.wav,b.wav,1", "a.wav,b.wav", "should be <enrolment clip> <test clip> <1 or 0>"),
        ("1 a.wav b.wav", "2 a.wav b.wav", "should be <1 or 0>"),
        ("a.wav b.wav", "1 a.wav b.wav", "should be <enrolment clip> <test clip>"),
        ("a.wav b.wav", "a.wav", "should be <enrolment clip> <test clip>"),
    ],
)
def test_a_bad_trial_is_named(tmp_path, first, second, message):
    (tmp_path / "trials.txt").write_text(f"{first}\n{second}\n")
    with pytest.raises(InputError, match=rf"trials\.txt, line 2: {message}"):
        read_trials(tmp_path / "trials.txt")


def test_labels_may_be_needed(tmp_path):
    path = tmp_path / "trials.txt"
    path.write_text("1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n")
    assert read_trials(path, labelled=True) == TRIALS
    path.write_text("a/1.wav a/2.wav\n")
    with pytest.raises(InputError, match=r"trials\.txt, line 1: should be <1 or 0>"):
        read_trials(path, labelled=True)
    path.write_text("0 a/1.wav b/1.wav\n0 a/2.wav b/1.wav\n")
    with pytest.raises(InputError, match=r"trials\.txt: all trials are labelled 0"):
        read_trials(path, labelled=True)


def test_clips_go_by_the_ends_of_their_paths():
    numbers = number_clips(["/data/x/1.wav", "/data/y/1.wav", "/data/y/2.wav", "1.wav", "plain"])
    assert {clip: numbers.get(clip) for clip in ("x/1.wav", "y/1.wav", "2.wav", "data/y/2.wav", "plain")} == {
        "x/1.wav": 0,
        "y/1.wav": 1,
        "2.wav": 2,
        "data/y/2.wav": 2,
        "plain": 4,
    }
    assert numbers["1.wav"] == 3 and numbers["/data/x/1.wav"] == 0  # a whole name before an end
    assert "1.wav" not in number_clips(["x/1.wav", "y/1.wav"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not a readable text file"), (b"\xff", "not a readable text file"), (b"\n \n", "empty")],
)
def test_no_trials(tmp_path, content, message):
    if content:
        (tmp_path / "trials.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"trials\.txt: .*{message}"):
        read_trials(tmp_path / "trials.txt")


def kind(speakers, label):
    """All pairs of clips with that label."""
    pairs = combinations(range(len(speakers)), 2)
    return {pair for pair in pairs if (speakers[pair[0]] == speakers[pair[1]]) == label}


@given(st.lists(st.sampled_from("abcd"), max_size=14), st.integers(0, 60), st.integers(0, 9))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_sampled_trials(speakers, count, seed):
    targets, others = kind(speakers, True), kind(speakers, False)
    if not targets or not others:
        with pytest.raises(InputError, match="trials need two speakers"):
            sample_trials(speakers, count, seed)
        return
    trials = sample_trials(speakers, count, seed)
    pairs = [tuple(sorted(clips)) for _, *clips in trials]
    half = min(count // 2, len(targets), len(others))
    assert len(set(pairs)) == len(pairs) == 2 * half
    assert {pair for pair, (label, *_) in zip(pairs, trials, strict=True) if label} <= targets
    assert {pair for pair, (label, *_) in zip(pairs, trials, strict=True) if not label} <= others
    assert trials == sample_trials(speakers, count, seed)


def test_every_pair_is_sampled():
    speakers = ["x", "y", "x", "z", "y", "x"]
    seen = {(label, *sorted(clips)) for seed in range(300) for label, *clips in sample_trials(speakers, 2, seed)}
    assert seen == {(1, *pair) for pair in kind(speakers, True)} | {(0, *pair) for pair in kind(speakers, False)}
    assert sample_trials(speakers, 2, 0) != sample_trials(speakers, 2, 1)
    with pytest.raises(InputError, match="2 clips of 2 speakers"):
        sample_trials(["x", "y"], 10, 0)


def test_the_first_clips_of_each_speaker():
    assert first_clips(["x", "y", "x", "x", "z", "y"], most=2) == [0, 1, 2, 4, 5]


def test_the_cohort_is_of_the_first_clips():
    split = make_split(number=list(range(6))).select([5, 4, 3, 2, 1, 0])
    cohort, speakers = cohort_clips(split, ["x", "y", "x", "x", "z", "y"], most=2)
    assert cohort.name == "cohort" and cohort.column("number") == [5, 4, 3, 1, 0]
    assert speakers == ["x", "y", "x", "z", "y"] and cohort.where(0) == "train, row 5"


SPEAKERS = {"train": ["ann", "bob", "cid", None], "validation": ["bob", "ann"], "test": ["cid", "bob", "ann", None]}


def speaker_splits():
    return {name: make_split(name, speaker=values) for name, values in SPEAKERS.items()}


def test_held_out_speakers_are_in_test_alone():
    splits, speakers = read_speakers(make_job(TrialData()), speaker_splits())
    assert speakers == SPEAKERS and {name: len(split) for name, split in splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 4,
    }
    splits, speakers = read_speakers(make_job(TrialData(held_out_speakers=["bob", "cid"])), speaker_splits())
    assert speakers == {"train": ["ann", None], "validation": ["ann"], "test": ["cid", "bob"]}
    assert all(split.column("speaker") == speakers[name] for name, split in splits.items())
    assert splits["train"].where(1) == "train, row 3"  # in the user's own file
    with pytest.raises(
        InputError, match=r"test: no speaker 'eve' \(data\.held_out_speakers\); there are ann, bob, cid"
    ):
        read_speakers(make_job(TrialData(held_out_speakers=["bob", "eve"])), speaker_splits())


@pytest.mark.parametrize(("mode", "trials", "named"), [("train", "t", 1), ("evaluate", None, 1), ("evaluate", "t", 0)])
def test_a_list_of_trials_needs_no_speakers(mode, trials, named):
    data = TrialData(trials=trials)
    assert bool(read_speakers(make_job(data, mode=mode), speaker_splits())[1]) == named
    assert read_speakers(make_job(data, mode="predict"), speaker_splits())[1] == {}


def test_the_head_has_a_class_a_speaker():
    assert speaker_head(make_job(TrialData()), {"train": ["b", None, "a", "b"]}) == {"id2label": {0: "a", 1: "b"}}
    with pytest.raises(InputError, match="train: who has 1 classes: b; should have two or more"):
        speaker_head(make_job(TrialData(speaker_column="who")), {"train": ["b", 0.5]})
    assert speaker_problem("b", 1.0, column="who") is None
    assert speaker_problem(None, 1.0, column="who") == "who is None; should be a name or number"


def test_the_shortest_clip_leaves_two_frames_of_the_convolutions():
    config = Data2VecAudioConfig()
    shortest = shortest_clip(config, 16_000, 8.0)
    assert config.frames(shortest) == config.tdnn_context + 2 > config.frames(shortest - 1)
    with pytest.raises(InputError, match=r"data\.crop_seconds 0\.3: the model's frames take 0\.325 s"):
        shortest_clip(config, 16_000, 0.3)


def test_the_trials_of_a_test(tmp_path):
    audio = [{"bytes": b"", "path": f"{name}.wav"} for name in ("x/1", "x/2", "y/1", "y/2")]
    split = make_split("test", id=list("abcd"), audio=audio)
    rows = Rows(split, split.ids("audio"), [1.0] * 4, ["x", "x", "y", "y"])
    job = make_job(TrialData(), mode="evaluate", seed=3)
    trials, named, source = choose_trials(job, rows)
    assert trials == sampled_trials(job, rows) == sample_trials(rows.references, 10_000, 3) and len(trials) == 4
    assert named == [(label, "abcd"[enrol], "abcd"[test]) for label, enrol, test in trials]
    assert source == "sampled from test"
    trials, named, source = choose_trials(make_job(TrialData(), mode="predict"), Rows(split, rows.ids, rows.lengths))
    assert trials[-1] == (None, 2, 3) and named[-1] == (None, "c", "d")
    assert (len(trials), source) == (6, "all pairs")
    # A list names clips by their ids, their files or the ends of these.
    (tmp_path / "trials.txt").write_text("1 a x/2.wav\n0 2.wav y/1.wav\n0 b d\n".replace("2.wav y", "x/2.wav y"))
    job = make_job(TrialData(trials=str(tmp_path / "trials.txt")), mode="evaluate")
    trials, named, source = choose_trials(job, rows)
    assert trials == [(1, 0, 1), (0, 1, 2), (0, 1, 3)] and source == "trials.txt"
    assert named == [(1, "a", "x/2.wav"), (0, "x/2.wav", "y/1.wav"), (0, "b", "d")]
    with pytest.raises(InputError, match="data.sampled_trials should be at least 2, not 1"):
        TrialData(sampled_trials=1)


def test_all_pairs_of_many_clips_are_refused():
    with pytest.raises(InputError, match=r"^20000 clips make 199990000 trials, more than .*; data.trials should list"):
        all_trials(20_000)
