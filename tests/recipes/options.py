"""What the tests of several recipes ask of their options: adapters open everywhere, a frozen encoder stays as it is."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

from d2v.data.loaders import NumberedBatches
from tests.parity import apart

TWO_UPDATES = ["--run.max_steps=2", "--run.eval_every=2"]


def adapters_open_in_transformers(run: Callable, name: str, base: Path, args: list, x: torch.Tensor, out: Path) -> None:
    """Train adapters from `base`, and assert that what is left opens in transformers, merged and with peft, alike.

    Args:
        run: from `tests.recipes.common.runner`.
        name: of the class, ours and transformers'.
        base: an encoder without a head.
        args: options of the run.
        x: an input.
        out: folder of the run.
    """
    run(*args, *TWO_UPDATES, f"--model={base}", "--lora.rank=4", f"--run.out={out}")
    theirs = getattr(transformers, name)
    merged = theirs.from_pretrained(out / "best").eval()
    plain = theirs.from_pretrained(base, config=transformers.AutoConfig.from_pretrained(out / "best"))
    adapted = peft.PeftModel.from_pretrained(plain, out / "best/adapter").eval()
    config = json.loads((out / "best/adapter/adapter_config.json").read_text("utf-8"))
    kinds = {"Data2VecTextForTokenClassification": "TOKEN_CLS", "Data2VecTextForQuestionAnswering": "QUESTION_ANS"}
    kinds["Data2VecTextForCausalLM"] = "CAUSAL_LM"
    assert (config["r"], config["task_type"]) == (4, kinds.get(name))
    assert config["base_model_name_or_path"] == str(base)  # without which an adapter says not whose it is
    with torch.no_grad():
        expected, found = merged(x), adapted(x)
    for key in expected:
        if isinstance(expected[key], torch.Tensor):
            assert apart(found[key], expected[key]) < 1e-5, key
    updates = [
        value for key, value in load_file(out / "best/adapter/adapter_model.safetensors").items() if "lora_B" in key
    ]
    assert updates and all(update.any() for update in updates)  # they were trained


def a_frozen_encoder_stays(run: Callable, base: Path, args: list, prefix: str, out: Path) -> None:
    """Assert that two updates with `--freeze encoder` change the head, and no weight of the encoder.

    Args:
        run: from `tests.recipes.common.runner`.
        base: an encoder without a head.
        args: options of the run.
        prefix: of the encoder's weights, such as "data2vec_audio.".
        out: folder of the run.
    """
    results = run(*args, *TWO_UPDATES, "--run.save_every=1", f"--model={base}", "--freeze=encoder", f"--run.out={out}")
    assert results["freeze"] == "encoder"
    before, best = load_file(base / "model.safetensors"), load_file(out / "best/model.safetensors")
    encoder = {key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)}
    both = {key for key in encoder.keys() & before.keys() if not key.startswith("pooler.dense")}
    assert len(both) > 20 and all(torch.equal(encoder[key], before[key]) for key in both)
    one, two = (load_file(out / f"checkpoints/step-{step:08d}/model.safetensors") for step in (1, 2))
    changed = {key for key in one if not torch.equal(one[key], two[key])}
    new = f"{prefix}pooler.dense."  # of multiple choice, whose head it belongs to
    assert changed and not [key for key in changed if key.startswith(prefix) and not key.startswith(new)]


def collate_functions_pickle(run: Callable, args: list, out: Path, monkeypatch) -> None:
    """Assert that a run with collate functions that were pickled is the run without.

    Args:
        run: from `tests.recipes.common.runner`.
        args: options of the run.
        out: folder of both.
        monkeypatch: pytest's.
    """
    run(*args, *TWO_UPDATES, f"--run.out={out / 'plain'}")
    start, pickled = NumberedBatches.__init__, []

    def copied(self, collate, source):
        pickled.append(collate)
        start(self, pickle.loads(pickle.dumps(collate)), source)

    monkeypatch.setattr(NumberedBatches, "__init__", copied)
    run(*args, *TWO_UPDATES, f"--run.out={out / 'pickled'}")
    assert len(pickled) >= 3  # to train, validate and test
    plain, again = (load_file(out / name / "best/model.safetensors") for name in ("plain", "pickled"))
    assert all(torch.equal(plain[key], again[key]) for key in plain)
    lines = [(out / name / "predictions.jsonl").read_text("utf-8") for name in ("plain", "pickled")]
    assert lines[0] == lines[1]
