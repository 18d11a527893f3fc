"""`recipes/asr_ctc.py` from end to end on tiny data."""

import json
import math
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.recipe import RECIPES, load_recipe
from d2v.errors import InputError
from d2v.metrics.asr import error_rates
from d2v.training.log import read_log
from tests.recipes.common import runner
from tests.tiny import TINY_AUDIO, arpa, flac, speech, tones

recipe, run = load_recipe("asr_ctc"), runner("asr_ctc")
ARCH = [f"--arch.{key}={value}" for key, value in (TINY_AUDIO | {"mask_time_length": 2}).items()]
SMALL = [*ARCH, "--data.batch_size=4", "--optim.lr=2e-3", "--optim.clip=1", "--run.tracker=null", "--run.log_every=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return speech(tmp_path_factory.mktemp("data"), train=16, validation=4, test=5)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    evaluations = [entry for entry in read_log(out / "log.jsonl") if "eval_wer" in entry]
    assert len(evaluations) == 2 and all(0 < entry["eval_loss"] < math.inf for entry in evaluations)
    left = {path.name for path in out.iterdir()}
    assert left >= {"config.yaml", "environment.json", "log.jsonl", "checkpoints", "best", "results.json", "curves.png"}
    assert json.loads((out / "results.json").read_text()) == results
    assert set(results) >= {"wer", "cer", "split", "seconds", "examples_per_second", "peak_memory_mb"}
    assert results["split"] == "test" and results["examples"] == 5
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in predictions] == [f"test-{i}" for i in range(5)]
    assert "model-index" in (out / "best/README.md").read_text()
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((out / "config.yaml").read_text())["run"]["max_steps"] == 6


def test_the_resolved_configuration_repeats_the_run(trained, tmp_path):
    out, results = trained
    again = run(f"--config={out / 'config.yaml'}", f"--run.out={tmp_path}")
    assert (again["wer"], again["cer"]) == (results["wer"], results["cer"])
    weights = [load_file(folder / "best/model.safetensors") for folder in (out, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_reproduces_the_figure(trained, data, tmp_path):
    out, results = trained
    again = run("--mode=evaluate", f"--model={out / 'best'}", f"--data.path={data}", f"--run.out={tmp_path}")
    assert (again["wer"], again["cer"]) == (results["wer"], results["cer"])
    assert (tmp_path / "predictions.jsonl").read_text() == (out / "predictions.jsonl").read_text()


def test_predict_needs_no_labels(trained, tmp_path):
    import soundfile

    for name, text in (("x.wav", "abc ab"), ("y.flac", "b")):
        soundfile.write(tmp_path / name, tones(text), 16_000)
    run("--mode=predict", f"--model={trained[0] / 'best'}", f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}")
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [Path(row["id"]).name for row in rows] == ["x.wav", "y.flac"]
    assert all(set(row) == {"id", "text", "words", "seconds"} for row in rows)


def evaluate(trained, data, out, *args):
    """Figures and predictions of mode evaluate."""
    results = run("--mode=evaluate", f"--model={trained[0] / 'best'}", f"--data.path={data}", f"--run.out={out}", *args)
    return results, [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_a_language_model_is_reported_beside_greedy(trained, data, tmp_path):
    """Whatever is heard, a language model that knows two words, and leaves nothing unsaid, writes these."""
    words = {"<unk>": -9.0, "ab": -0.1, "cab": -1.0, "</s>": -1.0}
    model = arpa(tmp_path / "lm.arpa", words, {"<s> </s>": -99.0, "ab </s>": -0.1})
    results, rows = evaluate(trained, data, tmp_path / "out", f"--lm.path={model}", "--lm.word_score=1")
    assert results.keys() >= {"wer", "cer", "wer_lm", "cer_lm"}
    assert (results["wer"], results["cer"]) == (trained[1]["wer"], trained[1]["cer"])
    assert all(row["text_lm"] and set(row["text_lm"].split()) <= {"ab", "cab"} for row in rows)
    rates = error_rates([row["reference"] for row in rows], [row["text_lm"] for row in rows])
    assert (results["wer_lm"], results["cer_lm"]) == (rates["wer"], rates["cer"])
    train = [*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'run'}", "--run.max_steps=1"]
    assert run(*train, f"--lm.path={model}").keys() >= {"wer_lm", "cer_lm"}


def test_a_missing_language_model_is_named_before_training(data, tmp_path):
    with pytest.raises(InputError, match="nowhere.arpa: no such file"):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path}", "--lm.path=nowhere.arpa")
    assert not (tmp_path / "checkpoints").exists()


def test_the_normalised_figure_is_reported_beside_the_plain_one(trained, tmp_path):
    sound = flac(tones("abc ab"))
    _, [heard] = evaluate(trained, speech(tmp_path / "one", test=[(sound, "a")]), tmp_path / "heard")
    words = len(heard["text"].split())
    texts = [f"[noise] {heard['text']}!", "um", "nothing"]  # right, left out, wrong
    folder = speech(tmp_path / "three", test=[(sound, text) for text in texts])
    results, _ = evaluate(trained, folder, tmp_path / "out", "--data.normalizer=whisper")
    assert results["wer_normalized"] == pytest.approx(words / (words + 1))
    assert results["wer"] > results["wer_normalized"]


def test_long_recordings_are_heard_in_windows(trained, data, tmp_path, monkeypatch):
    plain, rows = evaluate(trained, data, tmp_path / "whole")
    heard, forward = [], recipe.Data2VecAudioForCTC.forward

    def listen(model, input_values, *args):
        heard.append(tuple(input_values.shape))
        return forward(model, input_values, *args)

    monkeypatch.setattr(recipe.Data2VecAudioForCTC, "forward", listen)
    longest = ["--data.chunk_seconds=2", "--data.batch_seconds=4"]
    same, same_rows = evaluate(trained, data, tmp_path / "short", *longest)
    assert (same["wer"], same_rows) == (plain["wer"], rows)  # no clip is so long
    heard.clear()
    texts = ["abc ab cab " * 8, "ab"]
    folder = speech(tmp_path / "data", test=[(flac(tones(text)), text) for text in texts])
    _, long_rows = evaluate(trained, folder, tmp_path / "long", *longest)
    assert {samples for _, samples in heard} == {99 * 320 - 320 + 400, 3200} and max(rows for rows, _ in heard) == 2
    _, alone = evaluate(trained, folder, tmp_path / "alone")
    assert long_rows[1] == alone[1]
    assert all(word["end"] <= 8.8 for word in long_rows[0]["words"])


def test_transcripts_leave_in_other_formats(trained, tmp_path):
    folder = speech(tmp_path / "data", test=[(flac(tones("abc ab")), "abc ab")] * 2)
    _, rows = evaluate(trained, folder, tmp_path / "out", "--export=[textgrid,srt,vtt,rttm]", "--data.channel=1")
    left = {path.name for path in (tmp_path / "out/annotations").iterdir()}
    assert left == {f"test-{i}.{kind}" for i in (0, 1) for kind in ("TextGrid", "srt", "vtt")} | {"all.rttm"}
    shown = (tmp_path / "out/annotations/test-0.vtt").read_text("utf-8")
    assert (rows[0]["text"] in shown) and ("-->" in shown) == bool(rows[0]["text"])


def test_best_opens_in_transformers(trained, data):
    import transformers

    out, _ = trained
    folder = str(out / "best")
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    ours = recipe.Data2VecAudioForCTC.from_pretrained(folder)
    clip = tones("abcab ab", 3)
    inputs = processor(clip, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_values).logits
        assert torch.allclose(ours(inputs.input_values).logits, logits, atol=1e-5)
    recogniser = transformers.pipeline("automatic-speech-recognition", model=folder)
    assert recogniser(clip)["text"] == processor.batch_decode(logits.argmax(-1))[0]


def test_the_loss_is_reduced_as_the_models_configuration_says(trained, data, tmp_path):
    few = [f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1"]
    run(*SMALL, *few, "--arch.ctc_loss_reduction=mean")
    by_label, by_clip = (read_log(out / "log.jsonl")[0]["loss"] for out in (tmp_path / "out", trained[0]))
    assert by_label < by_clip / 2  # each clip has two letters or more


def test_it_learns_the_letters(data, tmp_path):
    """Sixteen clips of three tones: the transcripts are learnt by heart in a few hundred small updates."""
    train = [f"--data.path={data}", "--data.validation_split=train", "--data.test_split=train", "--data.batch_size=8"]
    still = [f"--arch.{key}=0.0" for key in ("activation_dropout", "layerdrop", "mask_time_prob", "mask_feature_prob")]
    steps = ["--run.max_steps=240", "--run.eval_every=80", "--run.patience=10", "--freeze=nothing"]
    results = run(*SMALL, *train, *still, *steps, "--optim.lr=4e-3", f"--run.out={tmp_path / 'out'}")
    assert results["wer"] <= 0.2


def test_fine_tuning_starts_from_a_checkpoint_and_keeps_its_vocabulary(trained, data, tmp_path):
    best = trained[0] / "best"
    few = ["--run.max_steps=1", "--run.tracker=null", f"--data.path={data}", "--arch.mask_time_length=2"]
    run(f"--model={best}", *few, f"--run.out={tmp_path / 'a'}", "--optim.lr=1e-12")
    assert (tmp_path / "a/best/vocab.json").read_text() == (best / "vocab.json").read_text()
    old, new = load_file(best / "model.safetensors"), load_file(tmp_path / "a/best/model.safetensors")
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    (tmp_path / "b").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):  # pretrained: no vocabulary yet
        shutil.copy(best / name, tmp_path / "b")
    run(f"--model={tmp_path / 'b'}", *few, f"--run.out={tmp_path / 'c'}")
    assert json.loads((tmp_path / "c/best/vocab.json").read_text())["<pad>"] == 0


def test_without_validation_a_share_of_train_is_held_out(tmp_path):
    folder = speech(tmp_path / "data", train=20)
    results = run(*SMALL, f"--data.path={folder}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1")
    assert results["split"] == "validation" and results["examples"] == 2


GOOD = (flac(tones("abc ab")), "abc ab")
SHORT = flac(np.zeros(399, dtype=np.float32))
BAD_ROWS = {
    "unreadable": ((b"not a sound", "ab"), "row 1: .*<bytes>"),
    "empty": ((flac(np.zeros(0, dtype=np.float32)), "ab"), "row 1: "),
    "missing": (((None, "nowhere.wav"), "ab"), "row 1: nowhere.wav"),
    "too short": ((SHORT, "ab"), "row 1: 0.025 s of sound; a clip has 0.025"),
    "too many labels": ((flac(tones("ab")), "abcabcabcabc"), "row 1: 12 labels need 12 frames; the clip has 9"),
    "empty transcript": ((GOOD[0], "  "), "row 1: empty transcript"),
    "no transcript": ((GOOD[0], None), "row 1: a transcript should be text, not None"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_or_left_out(case, tmp_path, capsys):
    (sound, text), message = BAD_ROWS[case]
    folder = speech(tmp_path / "data", train=[GOOD] * 6, validation=2)
    import datasets

    table = datasets.Dataset.from_parquet(str(folder / "train.parquet")).to_dict()
    content, path = sound if isinstance(sound, tuple) else (sound, None)
    table["audio"][1] = {"bytes": content, "path": path}
    table["text"][1] = text
    datasets.Dataset.from_dict(table).to_parquet(folder / "train.parquet")
    args = [*SMALL, f"--data.path={folder}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1"]
    with pytest.raises(InputError, match=message):
        run(*args)
    run(*args, "--data.bad_rows=skip")
    assert "train: 1 of 6 rows left out" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_damage_that_the_header_hides_is_named_or_left_out(workers, tmp_path, capsys):
    """Each split is decoded where it is used, and what cannot be is counted; a batch may be of such rows alone."""
    cut = (GOOD[0][: len(GOOD[0]) // 2], "ab")
    folder = speech(tmp_path / "data", train=[GOOD, cut, GOOD, GOOD], validation=[cut, GOOD, GOOD])
    args = [*SMALL, f"--data.path={folder}", "--run.max_steps=4", f"--data.workers={workers}", "--data.batch_size=1"]
    with pytest.raises(InputError, match="(train, row 1|validation, row 0): <bytes>: damaged .*--data.bad_rows skip"):
        run(*args, f"--run.out={tmp_path / 'a'}")
    results = run(*args, f"--run.out={tmp_path / 'b'}", "--data.bad_rows=skip")
    assert results["examples"] == 2  # validation is the test here
    printed = capsys.readouterr().out
    for split, row in (("train", 1), ("validation", 0)):
        assert printed.count(f"left out, cannot be decoded: 1 row {split}, row {row}: <bytes>: damaged") == 1
    facts = json.loads((tmp_path / "b/data.json").read_text("utf-8"))["facts"]
    assert {fact["split"] for fact in facts if fact["fact"] == "left out, cannot be decoded"} == {"train", "validation"}


def test_unknown_characters_are_named(trained, data, tmp_path):
    folder = speech(tmp_path / "data", train=[GOOD, (GOOD[0], "abç")], validation=2)
    with pytest.raises(InputError, match=r"row 1: characters 'ç' are not in the vocabulary; see data.case"):
        run(f"--model={trained[0] / 'best'}", f"--data.path={folder}", f"--run.out={tmp_path / 'out'}")


BAD_OPTIONS = {
    "missing data": (["--data.path=nowhere.parquet"], "nowhere.parquet: no such file"),
    "missing folder": (["--data.path=no/where"], "no/where: neither a folder nor a file"),
    "wrong column": (["--data.text_column=words"], "no column 'words' .data.text_column.; there are id, audio, text"),
    "not sound": (["--data.audio_column=text"], "row 0: .*no such file"),
    "wrong split": (["--data.train_split=learn"], "no split 'learn' .data.train_split.; there are train, validation"),
    "unknown option": (["--optim.lrr=1"], "unknown option 'optim.lrr'; did you mean 'optim.lr'"),
    "wrong type": (["--run.max_steps=many"], "run.max_steps"),
    "unknown size": (["--arch.hidden_sizes=8"], "unknown configuration key 'hidden_sizes'; Data2VecAudioConfig has"),
    "wrong size": (["--arch.hidden_size=big"], "Data2VecAudioConfig.hidden_size should be int, not 'big'"),
    "odd heads": (["--arch.num_attention_heads=5"], "hidden_size 32 is not a multiple of num_attention_heads 5"),
    "unknown normaliser": (["--data.normalizer=basic"], "normalizer"),
    "no window": (["--data.chunk_seconds=0.01"], "--data.chunk_seconds 0.01 should be at least 0.025"),
    "no model": (["--mode=evaluate"], "--mode evaluate needs --model"),
    "missing model": (["--model=no/where"], "no/where: not a folder, and the hub cannot be reached"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_bad_option_is_named(case, data, tmp_path):
    args, message = BAD_OPTIONS[case]
    with pytest.raises(InputError, match=message) as caught:
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", *args)
    assert "\n" not in str(caught.value)


class Payload:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("case", ["another architecture", "truncated", "pickle"])
def test_a_bad_checkpoint_is_named_and_runs_nothing(case, trained, data, tmp_path):
    folder = shutil.copytree(trained[0] / "best", tmp_path / "model")
    weights, mark = folder / "model.safetensors", tmp_path / "mark"
    if case == "another architecture":
        (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
        message = "model_type is 'wav2vec2'; Data2VecAudioConfig reads 'data2vec-audio'"
    elif case == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
        message = "model.safetensors: truncated or not a safetensors file"
    else:
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(mark)}))
        message = "pytorch_model.bin: damaged, or holds more than tensors"
    with pytest.raises(InputError, match=message):
        run(f"--model={folder}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert not mark.exists()


def test_sound_that_is_not_normalised_is_refused(trained, data, tmp_path):
    folder = shutil.copytree(trained[0] / "best", tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"do_normalize": true', '"do_normalize": false'))
    with pytest.raises(InputError, match="model: has do_normalize false"):
        run(f"--model={folder}", f"--data.path={data}", f"--run.out={tmp_path / 'out'}")


COMMAND = [sys.executable, str(RECIPES / "asr_ctc.py"), *SMALL, "--run.save_every=1", "--run.eval_every=3"]


def final_weights(out):
    return load_file(sorted(out.glob("checkpoints/step-*"))[-1] / "model.safetensors")


def kill_and_resume(data, out, steps, moments):
    """Kill a run at each moment, in seconds after a checkpoint, and let it end; returns how often it was hit."""
    command, hits = [*COMMAND, f"--data.path={data}", f"--run.out={out}", f"--run.max_steps={steps}"], 0
    for moment in moments:
        process = subprocess.Popen([*command, "--run.resume=true"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        before = sorted(out.glob("checkpoints/step-*"))
        while process.poll() is None and sorted(out.glob("checkpoints/step-*")) == before:
            time.sleep(0.001)
        time.sleep(moment)
        hits += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run([*command, "--run.resume=true"], check=True, capture_output=True)
    return hits


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 10])
def test_a_killed_run_goes_on_to_the_same_weights(kills, data, tmp_path):
    steps = 12 if kills == 1 else 150
    straight = [*COMMAND, f"--data.path={data}", f"--run.out={tmp_path / 'straight'}", f"--run.max_steps={steps}"]
    subprocess.run(straight, check=True, capture_output=True)
    moments = [random.Random(i).uniform(0, 0.5) for i in range(kills)] if kills > 1 else [0.0]
    hits = kill_and_resume(data, tmp_path / "killed", steps, moments)
    assert hits >= max(1, kills // 2)
    a, b = final_weights(tmp_path / "straight"), final_weights(tmp_path / "killed")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_sigterm_saves_and_exits_with_130(data, tmp_path):
    command = [*COMMAND, f"--data.path={data}", f"--run.out={tmp_path}", "--run.max_steps=100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("checkpoints/step-*")):
        time.sleep(0.05)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.strip().splitlines()[-1].startswith("interrupted: saved at update")
    assert "Traceback" not in error


@pytest.mark.slow
def test_two_ranks_follow_one(data, tmp_path):
    """The same global batches on two processes: the same losses, and the same word error rate."""
    still = [f"--arch.{key}=0.0" for key in ("activation_dropout", "layerdrop", "mask_time_prob", "mask_feature_prob")]
    common = [*SMALL, *still, f"--data.path={data}", "--run.max_steps=6", "--run.eval_every=3"]
    one = run(*common, f"--run.out={tmp_path / 'one'}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [*torchrun, str(RECIPES / "asr_ctc.py"), *common, f"--run.out={tmp_path / 'two'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs = {name: (tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")}
    losses = {name: [json.loads(line)["loss"] for line in log if '"loss"' in line] for name, log in logs.items()}
    assert len(losses["two"]) == 6
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    two = json.loads((tmp_path / "two/results.json").read_text())
    assert (two["wer"], two["cer"]) == (one["wer"], one["cer"])
