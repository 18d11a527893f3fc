"""`recipes/causal_lm.py` from end to end on tiny data."""

import json
import math
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch

from benchmarks.recipe import RECIPES
from d2v.data.language_modeling import LanguageData, pieces, read_stream
from d2v.errors import InputError
from d2v.models.text import Data2VecTextConfig
from d2v.models.text_heads import Data2VecTextForCausalLM, Data2VecTextForMaskedLM
from d2v.processors.text import Tokenizer
from tests.helpers import make_job, make_split
from tests.recipes.common import (
    evaluates_to_the_same,
    figures,
    goes_on_exactly,
    logs_its_loss,
    outputs_beyond_the_tokens_take_nothing,
    predictions,
    runner,
)
from tests.tiny import TINY_TEXT, sentences

run = runner("causal_lm")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=290", "--data.max_length=12", "--data.batch_size=8", "--optim.lr=3e-3"]
SMALL += ["--run.log_every=1", "--sampling.max_new_tokens=4"]
LINES = ["--data.separator=\n"]
COUNTS = {"train": 80, "validation": 12, "test": 9}


def write(folder):
    """Text files, a sentence a line."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(COUNTS.items()):
        (folder / f"{split}.txt").write_text("\n".join(sentences(count, seed)) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "lines")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    args = [*SMALL, *LINES, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3"]
    return out, run(*args, "--sampling.prompts=[the]", pictures=True)


def one_by_one(folder, text: str, size: int, **changes) -> list[float]:
    """What each token of a text costs, in nats, given the `size` tokens before it or as many as there are."""
    model = Data2VecTextForCausalLM.from_pretrained(folder, verbose=False, **{"is_decoder": True} | changes)
    (encoding,), costs = Tokenizer.from_pretrained(folder)([text]), []
    for i in range(1, len(encoding.ids)):
        before = torch.tensor([encoding.ids[max(i - size, 0) : i]])
        with torch.no_grad():
            logits = model(before, use_cache=False).logits[0, -1]
        costs.append(float(-logits.log_softmax(-1)[encoding.ids[i]]))
    return costs


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert {"results.json", "predictions.jsonl", "curves.png", "best"} <= {path.name for path in out.iterdir()}
    text, rows = "\n".join(sentences(COUNTS["test"], seed=2)), predictions(out)
    assert "".join(row["text"] for row in rows) == text + "</s>"  # everything is guessed once, and how it ends
    total, tokens = sum(row["loss"] for row in rows), sum(row["tokens"] for row in rows)
    assert results["loss"] == pytest.approx(total / tokens)
    assert results["perplexity"] == pytest.approx(math.exp(total / tokens))
    assert results["loss_per_character"] == pytest.approx(total / len(text))
    assert (results["split"], results["examples"]) == ("test", len(rows))


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [*LINES, f"--data.path={data}", "--data.max_length=12"], tmp_path)


def evaluate(model, data, out, *args):
    return run("--mode=evaluate", f"--model={model}", f"--data.path={data}", f"--run.out={out}", *LINES, *args)


@pytest.mark.parametrize("batch", [["--data.batch_size=1"], ["--data.batch_size=100"], ["--data.batch_tokens=30"]])
def test_batches_change_nothing(batch, trained, data, tmp_path):
    results = evaluate(trained[0] / "best", data, tmp_path, *batch)
    for key in ("loss", "perplexity", "loss_per_character"):
        assert results[key] == pytest.approx(trained[1][key], rel=1e-6)


def test_a_stride_gives_tokens_more_to_see(trained, data, tmp_path):
    """With windows one token apart every token is guessed from as many before it as a window has."""
    results = evaluate(trained[0] / "best", data, tmp_path, "--data.stride=1")
    costs = one_by_one(trained[0] / "best", "\n".join(sentences(COUNTS["test"], seed=2)), size=12)
    assert results["loss"] == pytest.approx(np.mean(costs), rel=1e-5) != pytest.approx(trained[1]["loss"], rel=1e-5)
    assert sum(row["tokens"] for row in predictions(tmp_path)) == len(costs) and results["stride"] == 1


def test_it_does_not_see_what_it_guesses(tmp_path, data):
    """An encoder's checkpoint is evaluated as a decoder, not by looking at the answer (transformers only warns)."""
    tokenizer = Tokenizer.train(sentences(80, 0), 290)
    sizes = TINY_TEXT | {"vocab_size": len(tokenizer), "max_position_embeddings": 66}
    config = Data2VecTextConfig(**sizes, initializer_range=0.3)
    for part in (Data2VecTextForMaskedLM(config), tokenizer):
        part.save_pretrained(tmp_path / "encoder")
    results = evaluate(tmp_path / "encoder", data, tmp_path / "out", "--data.stride=1")
    text = "\n".join(sentences(COUNTS["test"], seed=2))
    losses = [np.mean(one_by_one(tmp_path / "encoder", text, 64, is_decoder=decoder)) for decoder in (True, False)]
    assert results["loss"] == pytest.approx(losses[0], rel=1e-5) != pytest.approx(losses[1], rel=1e-5)
    args = [*SMALL, f"--model={tmp_path / 'encoder'}", f"--data.path={data}", f"--run.out={tmp_path / 'run'}"]
    run(*args, "--run.max_steps=1")
    assert json.loads((tmp_path / "run/best/config.json").read_text())["is_decoder"] is True


def test_windows_are_bounded_by_the_positions(data, tmp_path):
    """Positions begin behind the pad token's: 14 of them are room for 12 tokens."""
    args = [*SMALL, *LINES, f"--data.path={data}", f"--run.out={tmp_path}", "--run.max_steps=1"]
    run(*args, "--data.max_length=512", "--arch.max_position_embeddings=14")
    assert max(row["tokens"] for row in predictions(tmp_path)) == 12


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    text = "\n".join(sentences(COUNTS["test"], seed=2))
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :13]
    logits = model(ids[:, :12], use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    assert loss == pytest.approx(predictions(trained[0])[0]["loss"], rel=1e-5)


def test_a_stopped_run_goes_on_exactly(data, tmp_path):
    goes_on_exactly(run, [*SMALL, *LINES, f"--data.path={data}"], tmp_path)


@pytest.mark.slow
def test_two_ranks_follow_one(data, tmp_path):
    """With an epsilon that keeps Adam from making much of the rounding that differs with how rows are dealt."""
    still = [f"--arch.{key}=0.0" for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
    common = [*SMALL, *LINES, *still, f"--data.path={data}", "--run.max_steps=4", "--run.eval_every=2"]
    common += ["--data.batch_size=4", "--run.tracker=null", "--optim.batches=2", "--optim.eps=1e-3"]
    one = run(*common, f"--run.out={tmp_path / 'one'}")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(RECIPES / "causal_lm.py"), *common, f"--run.out={tmp_path / 'two'}"]
    done = subprocess.run(command, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two/results.json").read_text())
    for key in ("loss", "perplexity", "loss_per_character"):
        assert two[key] == pytest.approx(one[key], rel=1e-5)
    assert [row["text"] for row in predictions(tmp_path / "two")] == [
        row["text"] for row in predictions(tmp_path / "one")
    ]


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("learnt")
    args = [*SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=120", "--run.eval_every=60"]
    return out, run(*args)


def test_it_learns_a_grammar(learnt, data):
    tokenizer = Tokenizer.from_pretrained(learnt[0] / "best")
    counts = np.zeros(len(tokenizer))
    for split in ("train", "test"):
        texts = sentences(COUNTS[split], {"train": 0, "test": 2}[split])
        rows = pieces(make_job(LanguageData()), make_split(split, text=texts))
        ids = read_stream(rows, tokenizer, documents=True).ids
        ids = ids[ids != tokenizer.bos_token_id]
        if split == "train":
            counts += np.bincount(ids, minlength=len(counts))
    unigram = math.exp(-np.log(counts[ids] / counts.sum()).mean())
    assert learnt[1]["perplexity"] < 0.5 * unigram


def test_documents_end_and_their_beginning_is_not_guessed(learnt):
    rows = predictions(learnt[0])
    assert "".join(row["text"] for row in rows) == "".join(text + "</s>" for text in sentences(COUNTS["test"], 2))


def test_predict_continues_prompts(learnt, tmp_path):
    (tmp_path / "prompts.txt").write_text(
        "the red\n\nthe small cat sees the small cat sees the small cat sees\n", "utf-8"
    )
    args = ["--mode=predict", f"--model={learnt[0] / 'best'}", f"--data.path={tmp_path / 'prompts.txt'}"]
    args += ["--sampling.temperature=0", "--sampling.max_new_tokens=5"]
    run(*args, f"--run.out={tmp_path / 'together'}")
    run(*args, f"--run.out={tmp_path / 'alone'}", "--data.batch_size=1")
    rows = predictions(tmp_path / "together")
    assert rows == predictions(tmp_path / "alone")
    assert [row["prompt"] for row in rows][:2] == ["the red", ""]
    assert rows[0]["text"].split()[0] in ("cat", "dog", "bird") and rows[1]["text"].startswith("the ")
    sampled = [*args, "--sampling.temperature=1.0", "--run.seed=3"]
    run(*sampled, f"--run.out={tmp_path / 'a'}")
    run(*sampled, f"--run.out={tmp_path / 'b'}")
    assert predictions(tmp_path / "a") == predictions(tmp_path / "b")


def test_samples_are_shown_while_it_learns(data, tmp_path, capsys):
    args = [*SMALL, f"--data.path={data}", f"--run.out={tmp_path}", "--run.max_steps=4", "--run.eval_every=2"]
    run(*args, "--sampling.prompts=[the blue]", "--sampling.max_new_tokens=3")
    assert capsys.readouterr().out.count("\nthe blue") == 2


def test_showing_samples_changes_nothing(data, tmp_path):
    args = [*SMALL, f"--data.path={data}", "--run.max_steps=4", "--run.eval_every=1"]
    results = [run(*args, f"--run.out={tmp_path / n}", f"--sampling.max_new_tokens={n}") for n in ("1", "5")]
    assert figures(results[0]) == figures(results[1])


def test_adapters(trained, data, tmp_path):
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}", "--lora.rank=2", "--optim.lr=1e-2", *LINES]
    results = run(*args, f"--run.out={tmp_path}", "--run.max_steps=3", "--data.max_length=12")
    assert (tmp_path / "best/adapter/adapter_model.safetensors").is_file()
    again = evaluate(tmp_path / "best", data, tmp_path / "again", "--data.max_length=12")
    assert again["loss"] == pytest.approx(results["loss"], rel=1e-6) != trained[1]["loss"]


def test_rows_that_are_no_text(tmp_path):
    rows = {"text": ["the cat", None], "other": ["a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    args = [*SMALL, f"--data.path={tmp_path}", f"--run.out={tmp_path / 'out'}", "--data.validation_share=0.5"]
    with pytest.raises(InputError, match="train, row 1: text is None; should be text"):
        run(*args)
    with pytest.raises(InputError, match=r"train: no column 'story' \(data.text_column\); there are text, other"):
        run(*args, "--data.text_column=story")


def test_a_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "train.txt").write_bytes("Zoë\n".encode("latin-1") * 9)
    with pytest.raises(InputError, match=r"train.txt.*UTF-8"):
        run(*SMALL, f"--data.path={tmp_path / 'train.txt'}", f"--run.out={tmp_path / 'out'}")


def test_outputs_that_are_no_token_s_take_no_probability(trained, data, tmp_path):
    outputs_beyond_the_tokens_take_nothing(
        run, Data2VecTextForCausalLM, trained, [*SMALL, *LINES, f"--data.path={data}"], tmp_path
    )
