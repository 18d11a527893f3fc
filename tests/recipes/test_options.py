"""Adapters and a frozen encoder in the recipes whose own tests do not ask for them, and batches that pickle."""

import pytest
import torch

from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
from d2v.models.text_heads import Data2VecTextForMaskedLM
from d2v.processors.audio import AudioFeatureExtractor
from tests.helpers import tiny_reader, tiny_viewer
from tests.recipes.common import runner
from tests.recipes.options import a_frozen_encoder_stays, adapters_open_in_transformers, collate_functions_pickle
from tests.test_configs import write_like
from tests.tiny import TINY_AUDIO

AUDIO = ["--arch.mask_time_prob=0.0", "--arch.mask_feature_prob=0.0", "--arch.layerdrop=0.0"]
CLASSES = {
    "asr_ctc": "Data2VecAudioForCTC",
    "audio_classification": "Data2VecAudioForSequenceClassification",
    "text_classification": "Data2VecTextForSequenceClassification",
    "token_classification": "Data2VecTextForTokenClassification",
    "question_answering": "Data2VecTextForQuestionAnswering",
    "multiple_choice": "Data2VecTextForMultipleChoice",
    "causal_lm": "Data2VecTextForCausalLM",
    "masked_lm": "Data2VecTextForMaskedLM",
    "image_classification": "Data2VecVisionForImageClassification",
}


def encoder(name: str, folder):
    """A tiny encoder without a head, what a batch of one is, and what its weights begin with."""
    if "Audio" in CLASSES[name]:
        torch.manual_seed(0)
        for part in (Data2VecAudioModel(Data2VecAudioConfig(**TINY_AUDIO)), AudioFeatureExtractor()):
            part.save_pretrained(folder)
        return folder, torch.randn(1, 4000), "data2vec_audio."
    if "Text" in CLASSES[name]:
        x = torch.arange(5, 14)[None]
        return tiny_reader(folder), x if name != "multiple_choice" else x.expand(1, 2, -1), "data2vec_text."
    return tiny_viewer(folder), torch.rand(1, 3, 24, 24), "data2vec_vision."


@pytest.fixture(params=CLASSES)
def case(request, tmp_path):
    name = request.param
    write_like(name, None, None, tmp_path / f"data_{name}")
    base, x, prefix = encoder(name, tmp_path / "base")
    args = [f"--data.path={tmp_path}/data_{name}", "--data.batch_size=4", "--optim.lr=1e-2", "--optim.warmup=0"]
    return runner(name), name, base, x, prefix, args + (AUDIO if "Audio" in CLASSES[name] else [])


def test_adapters_open_in_transformers_and_peft(case, tmp_path):
    run, name, base, x, _, args = case
    if name.endswith("_lm"):  # its output bias belongs to no module, and so to no adapter: the base has to have it
        Data2VecTextForMaskedLM.from_pretrained(base, verbose=False).save_pretrained(base)
    adapters_open_in_transformers(run, CLASSES[name], base, args, x, tmp_path / "out")


def test_a_frozen_encoder_stays(case, tmp_path):
    run, _, base, _, prefix, args = case
    a_frozen_encoder_stays(run, base, args, prefix, tmp_path / "out")


def test_batches_pickle(case, tmp_path, monkeypatch):
    run, _, base, _, _, args = case
    collate_functions_pickle(run, [*args, f"--model={base}"], tmp_path, monkeypatch)
