"""`recipes/masked_lm.py` from end to end on tiny data."""

import math

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d2v.errors import InputError
from d2v.models.text_heads import Data2VecTextForMaskedLM, LMHead
from d2v.processors.text import Tokenizer
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

run = runner("masked_lm")
ARCH = [f"--arch.{key}={value}" for key, value in TINY_TEXT.items()]
SMALL = [*ARCH, "--data.vocab_size=290", "--data.max_length=16", "--data.batch_size=8", "--optim.lr=3e-3"]
SMALL += ["--run.log_every=1"]
COUNTS = {"train": 80, "validation": 12, "test": 9}


def write(folder):
    """Parquet files, a sentence a row."""
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(COUNTS.items()):
        datasets.Dataset.from_dict({"text": sentences(count, seed)}).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "rows")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(
        *SMALL, f"--data.path={data}", f"--run.out={out}", "--run.max_steps=6", "--run.eval_every=3", pictures=True
    )


def evaluate(model, data, out, *args):
    return run("--mode=evaluate", f"--model={model}", f"--data.path={data}", f"--run.out={out}", *args)


def test_a_run_leaves_what_it_should(trained):
    out, results = trained
    logs_its_loss(out)
    assert {"results.json", "predictions.jsonl", "curves.png", "best"} <= {path.name for path in out.iterdir()}
    rows = predictions(out)
    tokens = sum(row["tokens"] for row in rows)
    assert results["loss"] == pytest.approx(sum(row["loss"] for row in rows) / tokens)
    assert results["perplexity"] == pytest.approx(math.exp(results["loss"]))
    assert results["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / tokens)
    assert (results["split"], results["examples"]) == ("test", len(rows))
    assert all(len(row["guesses"]) == len(row["scores"]) == row["tokens"] for row in rows)
    assert all(scores == sorted(scores, reverse=True) for row in rows for scores in row["scores"])


def test_every_masked_token_weighs_the_same(trained):
    """Defect 18 of Hugging Face's scripts: windows have different numbers of masked tokens, but weigh the same."""
    rows = predictions(trained[0])
    assert len({row["tokens"] for row in rows}) > 1
    assert trained[1]["loss"] != pytest.approx(np.mean([row["loss"] / row["tokens"] for row in rows]), rel=1e-4)


def test_evaluate_repeats_the_figure(trained, data, tmp_path):
    evaluates_to_the_same(run, *trained, [f"--data.path={data}", "--data.max_length=16"], tmp_path)


@pytest.mark.parametrize("change", [["--run.seed=7"], ["--data.batch_size=1"], ["--data.batch_tokens=40"]])
def test_the_same_tokens_are_guessed_whatever_the_seed_and_the_batches(change, trained, data, tmp_path):
    results = evaluate(trained[0] / "best", data, tmp_path, "--data.max_length=16", *change)
    for key in ("loss", "perplexity", "accuracy"):
        assert results[key] == pytest.approx(trained[1][key], rel=1e-6)
    assert [row["filled"] for row in predictions(tmp_path)] == [row["filled"] for row in predictions(trained[0])]


def test_masks_of_training_change_and_logits_are_computed_there_alone(data, tmp_path, monkeypatch):
    computed, forward = [], LMHead.forward

    def look(self, x, embeddings):
        computed.append(len(x))
        return forward(self, x, embeddings)

    monkeypatch.setattr(LMHead, "forward", look)
    masked, model_forward = [], Data2VecTextForMaskedLM.forward

    def see(self, input_ids, *args, logits_at, **kwargs):
        if self.training:
            if not masked:
                computed.clear()  # of the evaluation that is tried first
            masked.append((input_ids.clone(), logits_at.clone()))
        return model_forward(self, input_ids, *args, logits_at=logits_at, **kwargs)

    monkeypatch.setattr(Data2VecTextForMaskedLM, "forward", see)
    few = ["--data.max_train_samples=2", "--run.max_steps=6", "--run.eval_every=6", "--data.whole_words=false"]
    run(*SMALL, *few, f"--data.path={data}", f"--run.out={tmp_path}")
    assert computed[:6] == [int(there.sum()) for _, there in masked]
    assert all(0.1 < there.float().mean() < 0.2 for _, there in masked)  # 15 %, of short texts rounded
    assert len({str(there.tolist()) for _, there in masked}) == 6
    tokenizer = Tokenizer.from_pretrained(tmp_path / "best")
    for ids, there in masked:
        assert (ids[:, 0] == tokenizer.bos_token_id).all() and (ids[:, -1] == tokenizer.eos_token_id).all()
        assert not there[:, [0, -1]].any()


def test_best_opens_in_transformers(trained):
    import transformers

    model = transformers.AutoModelForMaskedLM.from_pretrained(trained[0] / "best").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained[0] / "best")
    ids = tokenizer("the red<mask> sees the dog", return_tensors="pt").input_ids
    assert tokenizer.mask_token_id in ids[0]
    ours = Data2VecTextForMaskedLM.from_pretrained(trained[0] / "best")
    assert torch.allclose(model(ids).logits, ours(ids).logits, atol=1e-5)


@pytest.mark.parametrize("whole_words", ["true", "false"])
def test_a_stopped_run_goes_on_exactly(whole_words, data, tmp_path):
    goes_on_exactly(run, [*SMALL, f"--data.path={data}", f"--data.whole_words={whole_words}"], tmp_path)


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("learnt")
    args = [*SMALL, "--data.vocab_size=320", "--data.batch_size=64", f"--data.path={data}", f"--run.out={out}"]
    args += [f"--arch.{key}=0.0" for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
    args += ["--arch.initializer_range=0.2", "--data.mask_share=0.3"]  # a model as small is slow to look around
    return out, run(*args, "--run.max_steps=300", "--run.eval_every=100", "--optim.lr=5e-3")


def test_it_learns_a_grammar(learnt):
    # 2.4 of whoever knows the grammar, a choice of four, three or one; 9.2 of whoever knows how often words are.
    assert learnt[1]["perplexity"] < 4.6


def test_predict_fills_gaps(learnt, tmp_path, capsys):
    (tmp_path / "gaps.txt").write_text("the red cat<mask> the blue dog\n<mask> old<mask> sees the red bird\n", "utf-8")
    args = ["--mode=predict", f"--model={learnt[0] / 'best'}", f"--data.path={tmp_path / 'gaps.txt'}"]
    run(*args, f"--run.out={tmp_path / 'together'}")
    run(*args, f"--run.out={tmp_path / 'alone'}", "--data.batch_size=1")
    rows = predictions(tmp_path / "together")
    assert [row["filled"] for row in rows] == [row["filled"] for row in predictions(tmp_path / "alone")]
    assert [len(row["guesses"]) for row in rows] == [1, 2] and "tokens" not in rows[0]
    assert rows[0]["guesses"][0][0] in (" sees", " hears", " likes")
    assert rows[0]["filled"] == f"the red cat{rows[0]['guesses'][0][0]} the blue dog"
    assert rows[0]["filled"] in capsys.readouterr().out


def test_adapters(trained, data, tmp_path):
    args = [f"--model={trained[0] / 'best'}", f"--data.path={data}", "--data.max_length=16", "--lora.rank=2"]
    results = run(*args, f"--run.out={tmp_path}", "--run.max_steps=3", "--optim.lr=1e-2")
    assert (tmp_path / "best/adapter/adapter_model.safetensors").is_file()
    again = evaluate(tmp_path / "best", data, tmp_path / "again", "--data.max_length=16")
    assert figures(again).keys() == figures(results).keys()
    assert again["loss"] == pytest.approx(results["loss"], rel=1e-6)
    before, after = (load_file(out / "best/model.safetensors") for out in (trained[0], tmp_path))
    assert torch.equal(*(weights["data2vec_text.embeddings.word_embeddings.weight"] for weights in (before, after)))


def test_texts_without_a_gap(trained, tmp_path):
    (tmp_path / "gaps.txt").write_text("the red<mask>\nthe blue dog\n", "utf-8")
    args = ["--mode=predict", f"--model={trained[0] / 'best'}", f"--run.out={tmp_path / 'out'}"]
    with pytest.raises(InputError, match="test, row 1: has no <mask> to fill"):
        run(*args, f"--data.path={tmp_path / 'gaps.txt'}")
    (tmp_path / "empty.jsonl").write_text('{"text": "a<mask>"}\n{"text": " "}\n', "utf-8")
    with pytest.raises(InputError, match="test, row 1: has no <mask> to fill"):
        run(*args, f"--data.path={tmp_path / 'empty.jsonl'}")


def test_a_share_of_nothing(data, tmp_path):
    with pytest.raises(InputError, match=r"data.mask_share should be between 0 and 1, not 0.0"):
        run(*SMALL, f"--data.path={data}", f"--run.out={tmp_path}", "--data.mask_share=0.0")


def test_outputs_that_are_no_token_s_take_no_probability(trained, data, tmp_path):
    outputs_beyond_the_tokens_take_nothing(
        run, Data2VecTextForMaskedLM, trained, [*SMALL, f"--data.path={data}"], tmp_path
    )
