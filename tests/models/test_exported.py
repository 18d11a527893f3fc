"""Compiled and exported, a model takes batches of any size."""

import pytest
import torch
import torch._dynamo.testing

from d2v import (
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
)
from tests.tiny import TINY_TEXT, TINY_VISION

pytestmark = pytest.mark.slow


def model_of(kind: str) -> torch.nn.Module:
    if kind == "text":
        return Data2VecTextForSequenceClassification(Data2VecTextConfig(**TINY_TEXT)).eval()
    shared = {"use_shared_relative_position_bias": True}
    return Data2VecVisionForImageClassification(Data2VecVisionConfig(**TINY_VISION | shared)).eval()


def inputs_of(kind: str, model: torch.nn.Module, batch: int) -> torch.Tensor:
    if kind == "text":
        return torch.randint(5, model.config.vocab_size, (batch, 7))
    return torch.randn(batch, 3, 24, 24)


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_no_size_of_a_batch_is_compiled_for_on_its_own(kind):
    torch._dynamo.reset()
    model, graphs = model_of(kind), torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        for batch in range(2, 8):
            inputs = inputs_of(kind, model, batch)
            assert torch.equal(compiled(inputs).logits, model(inputs).logits)
    assert graphs.frame_count == 2  # for the first size, and for any other one


@pytest.mark.parametrize("kind", ["text", "vision"])
def test_an_exported_model_takes_any_batch(kind):
    model = model_of(kind)
    name = "input_ids" if kind == "text" else "pixel_values"
    sizes = {name: {0: torch.export.Dim("batch", min=2, max=64)}}
    with torch.no_grad():
        exported = torch.export.export(model, (inputs_of(kind, model, 3),), dynamic_shapes=sizes).module()
        inputs = inputs_of(kind, model, 5)
        assert torch.allclose(exported(inputs).logits, model(inputs).logits, atol=1e-6)
