"""Golden values of Hugging Face's last TensorFlow classes, pyramid pooling mended: `../shared/data/tf_golden`.

On every backend ours may be twice as far from d2v's PyTorch class in float64 as they are, and some ulps.
"""

import numpy as np
import pytest
import torch

pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")

from d2v import convert
from d2v.hub import KERAS, TENSORFLOW, read_h5, rename
from tests.helpers import ROOT
from tests.keras import backends
from tests.keras.test_parity import BACKENDS, start
from tests.parity import assert_as_close

GOLDEN = next((path for path in (ROOT / "shared", ROOT.parent / "shared") if path.is_dir()), ROOT) / "data/tf_golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no ../shared/data/tf_golden")
CASES = ["model_shared_bias", "model_layer_bias", "image_classification", "semantic_segmentation"]


def today(name: str) -> str:
    """Today's name of a weight that TensorFlow's model has so."""
    *parts, last = name.removesuffix(":0").replace("_._", "/").split("/")[1:]
    return rename(".".join([*parts, KERAS.get(last, last)]), TENSORFLOW)


def reference(name: str) -> tuple[dict, dict]:
    """Golden outputs and gradients' norms, and those of our PyTorch class in float64."""
    golden = dict(np.load(GOLDEN / name / "golden.npz"))
    model, _ = convert.read(GOLDEN / name / "tf_model.h5")
    model = model.double().eval()
    inputs = {key: torch.from_numpy(golden[key]) for key in backends.INPUTS if key in golden}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    scalar = output.loss if "loss" in output else output.last_hidden_state.square().sum()
    scalar.backward()
    parameters = {rename(key, model.renames): x for key, x in model.named_parameters()}
    exact = {"scalar": scalar} | {key: output[key] for key in output if torch.is_tensor(output[key])}
    for key in ("hidden_states", "attentions"):
        exact |= {f"{key}.{i}": x for i, x in enumerate(output[key])}
    exact |= {f"gradient/{key}": x.grad.norm() for key, x in parameters.items() if x.grad is not None}
    return golden, {key: x.detach().numpy() for key, x in exact.items()}


def compare(name: str, found: dict[str, np.ndarray]) -> None:
    golden, exact = reference(name)
    rows = len(golden["pixel_values"]) if name == "image_classification" else 1  # theirs is a sum over rows

    def tensors(*values) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(x)) for x in values]

    keys = {key for key in golden if f"output/{key}" in found} - {"loss"}
    assert {"logits", "last_hidden_state"} & keys and "hidden_states.0" in keys and "attentions.0" in keys
    for key in sorted(keys):
        assert_as_close(*tensors(found[f"output/{key}"], golden[key], exact[key]))
    if "output/loss" in found:
        mine = tensors(found["output/loss"], found["output/logits"])
        theirs = tensors(golden["scalar_loss"] / rows, golden["logits"])
        assert_as_close(mine, theirs, tensors(exact["scalar"], exact["logits"]))

    norms = dict(zip(golden["names"], golden["gradient_norms"], strict=True))
    norms = {today(key): value / rows for key, value in norms.items()}
    ours = {key: np.linalg.norm(x) for key, x in found.items() if key.startswith("gradient/")}
    ours = {key.removeprefix("gradient/"): value for key, value in ours.items()}
    prefix = "data2vec_vision." if name.startswith("model") else ""  # as the variables are called, in the model without
    ours = {prefix + key: value for key, value in ours.items()}
    assert ours.keys() <= norms.keys()
    order = sorted(norms)
    wanted = [
        exact.get(f"gradient/{key.removeprefix(prefix)}", 0.0) for key in order
    ]  # a last layer that nothing takes
    mine, theirs = (np.array([x.get(key, 0.0) for key in order], np.float32) for x in (ours, norms))
    assert_as_close(*tensors(mine, theirs, np.array(wanted, np.float64)))


@pytest.mark.parametrize("name", CASES)
def test_torch(name):
    compare(name, backends.golden(GOLDEN / name))


@pytest.mark.slow
@BACKENDS
def test_another_backend(tmp_path, backend):
    start(backend, "golden", str(GOLDEN), str(tmp_path), *CASES)
    for name in CASES:
        compare(name, dict(np.load(tmp_path / f"{name}.npz")))


def test_the_file_is_read_whole():
    """Every weight in it is one of the model's, and all of the model's are in it."""
    for name in CASES:
        names = backends.weights(backends.load(GOLDEN / name))
        prefix = "data2vec_vision." if name.startswith("model") else ""
        read = {key.removeprefix(prefix) for key in read_h5(GOLDEN / name / "tf_model.h5")}
        assert read == {key for key in names if not key.endswith("num_batches_tracked")}
