"""`recipes/question_answering.py` from end to end on tiny data."""

import json

import datasets
import pytest
import torch
from safetensors.torch import load_file

from d2v.errors import InputError
from d2v.hub import read_json
from d2v.metrics.question_answering import squad, squad_v2
from tests.recipes.common import evaluates_to_the_same, figures, goes_on_exactly, logs_its_loss, predictions, runner
from tests.tiny import TINY_TEXT, sentences

run = runner("question_answering")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=300", "--data.max_length=40", "--data.stride=8", "--data.batch_size=8"]
SMALL += ["--optim.lr=3e-3", "--run.log_every=1"]
SPLITS = {"train": 48, "validation": 8, "test": 9}
ASKED = {"what?": slice(3, 4), "who?": slice(2, 3), "whom?": slice(6, 7), "why?": None}


def ask(sentence: str, question: str) -> dict:
    """A question about a sentence such as "the red cat sees the old dog"; why, it does not say."""
    words, asked = sentence.split(), ASKED[question]
    text = [] if asked is None else [words[asked.start]]
    starts = [len(" ".join([*words[: asked.start], ""])) for _ in text] if asked else []
    return {"context": sentence, "question": question, "answers": {"text": text, "answer_start": starts}}


def write(folder, questions=("what?", "who?", "whom?"), times=1):
    """Parquet files of questions about sentences, several in a text."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(SPLITS.items()):
        rows = []
        for i in range(count):
            row = ask(sentences(count, seed)[i], questions[i % len(questions)])
            before = "".join(f"{text}, " for text in sentences(times - 1, seed + 100 + i))
            row["answers"]["answer_start"] = [start + len(before) for start in row["answers"]["answer_start"]]
            rows.append({"id": f"{split}-{i}"} | row | {"context": before + row["context"]})
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "answerable")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


@pytest.fixture(scope="module")
def doubtful(tmp_path_factory):
    """A run on questions some of which have no answer: data, folder and results."""
    data = write(tmp_path_factory.mktemp("data") / "some", tuple(ASKED))
    out = tmp_path_factory.mktemp("run") / "out"
    args = [*SMALL, "--data.unanswerable=true", f"--data.path={data}", f"--run.out={out}", "--run.max_steps=20"]
    return data, out, run(*args)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert (results["split"], results["examples"]) == ("test", SPLITS["test"])
    assert {"exact_match", "f1"} <= results.keys() and "best_f1" not in results
    rows, submitted = predictions(out), read_json(out / "predictions.json")
    nbest = read_json(out / "nbest_predictions.json")
    assert submitted == {row["id"]: row["answer"] for row in rows}
    scores = squad([row["reference"] for row in rows], list(submitted.values()))
    assert {key: results[key] for key in scores} == scores
    for row in rows:
        first, *others = nbest[row["id"]]
        assert row["answer"] == first["text"] and set(row) == {"id", "question", "answer", "start", "end", "reference"}
        chances = [first["probability"], *(other["probability"] for other in others)]
        assert chances == sorted(chances, reverse=True) and sum(chances) == pytest.approx(1) and len(chances) == 20
    assert not (out / "na_prob.json").exists()


def test_answers_are_what_stands_there(trained, data):
    contexts = datasets.Dataset.from_parquet(str(data / "test.parquet"))["context"]
    for row, context in zip(predictions(trained[0]), contexts, strict=True):
        assert row["answer"] == context[row["start"] : row["end"]] != ""


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}", "--data.max_length=40", "--data.stride=8"], tmp_path)


def test_a_question_is_answered_the_same_in_any_batch(trained, data, tmp_path):
    again = [f"--model={trained[0] / 'best'}", f"--data.path={data}", "--data.stride=8", f"--run.out={tmp_path}"]
    run("--mode=evaluate", *again, "--data.batch_size=1")
    assert read_json(tmp_path / "predictions.json") == read_json(trained[0] / "predictions.json")


def test_best_opens_in_transformers(trained, data):
    import transformers

    model = transformers.AutoModelForQuestionAnswering.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    contexts = datasets.Dataset.from_parquet(str(data / "test.parquet"))["context"]
    for row, context in zip(predictions(trained[0]), contexts, strict=True):
        inputs = tokenizer(row["question"], context, return_tensors="pt", return_offsets_mapping=True)
        offsets, sides = inputs.pop("offset_mapping")[0].tolist(), inputs.sequence_ids()
        with torch.no_grad():
            output = model(**inputs)
        starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        text = [i for i, side in enumerate(sides) if side == 1]
        _, first, last = max((starts[i] + ends[j], i, j) for i in text for j in text if i <= j < i + 30)
        assert (row["start"], row["end"]) == (offsets[first][0], offsets[last][1])


@pytest.mark.parametrize("unanswerable", [False, True])
def test_a_stopped_run_goes_on_exactly(unanswerable, data, doubtful, tmp_path):
    path = doubtful[0] if unanswerable else data
    goes_on_exactly(run, [*SMALL, f"--data.path={path}", f"--data.unanswerable={str(unanswerable).lower()}"], tmp_path)


@pytest.mark.parametrize("times", [1, 4])
def test_it_learns_to_answer(times, tmp_path):
    """From one sentence, and from the last of four, which makes several windows of a text."""
    data = write(tmp_path / "data", ("what?",), times)
    steps = ["--run.max_steps=120", "--run.eval_every=40", "--arch.hidden_dropout_prob=0.0"]
    results = run(*SMALL, *steps, f"--data.path={data}", f"--run.out={tmp_path / 'out'}")
    assert results["exact_match"] > 0.8 if times == 1 else results["f1"] > 0.3


def test_no_answer(doubtful):
    """A question is left without an answer by its probability, and the figures are those of the official script."""
    _, out, results = doubtful
    rows, doubts, submitted = predictions(out), read_json(out / "na_prob.json"), read_json(out / "predictions.json")
    assert len(set(doubts.values())) == len(rows) and all(0 < doubt < 1 for doubt in doubts.values())
    assert list(submitted.values()) == ["" if doubts[row["id"]] > 0.5 else row["best"] for row in rows]
    assert results["no_answer_threshold"] == 0.5
    references = [row["reference"] for row in rows]
    scores = squad_v2(references, [row["best"] for row in rows], list(doubts.values()), 0.5)
    assert list(scores)[:2] == ["exact_match", "f1"] and {"has_ans_f1", "no_ans_f1", "best_f1"} < scores.keys()
    assert {key: results[key] for key in scores} == scores
    # What is handed in scores the same by itself.
    assert squad_v2(references, list(submitted.values()), [0.0] * len(rows), 1.0)["f1"] == pytest.approx(results["f1"])
    listed = read_json(out / "nbest_predictions.json")
    assert all(sum(entry["text"] == "" for entry in entries) == 1 for entries in listed.values())


def test_the_best_threshold_reaches_the_best_f1(doubtful, tmp_path):
    data, out, results = doubtful
    args = ["--data.unanswerable=true", f"--data.path={data}", "--data.stride=8", f"--run.out={tmp_path}"]
    threshold = f"--data.no_answer_threshold={results['best_f1_thresh']!r}"
    again = run("--mode=evaluate", f"--model={out / 'best'}", *args, threshold)
    assert again["f1"] == pytest.approx(results["best_f1"]) == pytest.approx(again["best_f1"])


def test_fewer_rows_keep_all_their_windows(tmp_path):
    """Texts of several windows: limiting the rows limits no windows, and needs no train split."""
    data = write(tmp_path / "data", times=8)
    args = [*SMALL, f"--data.path={data}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=2"]
    run(*args)
    every = read_json(tmp_path / "out/nbest_predictions.json")
    (data / "train.parquet").unlink()
    (data / "validation.parquet").unlink()
    few = ["--data.max_test_samples=3", "--data.stride=8", f"--run.out={tmp_path / 'few'}"]
    run("--mode=evaluate", f"--model={tmp_path / 'out/best'}", f"--data.path={data}", *few)
    found = read_json(tmp_path / "few/nbest_predictions.json")
    assert len(found) == 3 and {name: [entry["text"] for entry in every[name]] for name in found} == {
        name: [entry["text"] for entry in entries] for name, entries in found.items()
    }


def test_predict_needs_no_answers(trained, tmp_path):
    """A file of SQuAD's layout without answers; a text longer than the model."""
    text = "the red cat sees the old dog, " * 20
    article = {"paragraphs": [{"context": text, "qas": [{"id": "7", "question": " who? "}]}]}
    (tmp_path / "asked.json").write_text(json.dumps({"data": [article]}), "utf-8")
    args = [f"--data.path={tmp_path / 'asked.json'}", "--data.stride=8", f"--run.out={tmp_path / 'out'}"]
    run("--mode=predict", f"--model={trained[0] / 'best'}", *args)
    (row,) = predictions(tmp_path / "out")
    assert set(row) == {"id", "question", "answer", "start", "end"} and row["answer"] in text
    assert read_json(tmp_path / "out/predictions.json") == {"7": row["answer"]}


def test_an_adapter_alone_is_trained(trained, data, tmp_path):
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}", "--data.max_length=40", "--data.stride=8"]
    results = run(*args, f"--run.out={tmp_path / 'out'}", "--lora.rank=2", "--run.max_steps=3", "--optim.lr=1e-2")
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path / "out"))
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved == {
        name for name in before if any(part in name for part in ("qa_outputs", "query.weight", "value.weight"))
    }
    again = run("--mode=evaluate", f"--model={tmp_path / 'out/best'}", *args[1:], f"--run.out={tmp_path / 'again'}")
    assert figures(again) == figures(results)


def test_bad_rows_are_named(data, tmp_path):
    rows = datasets.Dataset.from_parquet(str(data / "train.parquet")).to_list()
    rows[3]["answers"]["answer_start"] = [1]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    args = [*SMALL, f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}", "--run.max_steps=1"]
    with pytest.raises(InputError, match=r"row \d+: the answer '.*' should begin at character 1 of its context, where"):
        run(*args)
    with pytest.raises(InputError, match=r"no column 'reply' \(data.answers_column\); there are id, context"):
        run(*args, "--data.answers_column=reply")


def test_questions_without_an_answer_are_asked_for(doubtful, tmp_path):
    with pytest.raises(InputError, match="no answer; --data.unanswerable true is for questions that have none"):
        run(*SMALL, f"--data.path={doubtful[0]}", f"--run.out={tmp_path}", "--run.max_steps=1")
