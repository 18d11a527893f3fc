"""Golden values: of Hugging Face's last TensorFlow classes, pyramid pooling mended, in `../shared/data/tf_golden`, and
smaller ones of d2v's own PyTorch classes, which `tests/keras/golden.py` made.

On every backend ours may be twice as far from d2v's PyTorch class in float64 as they are, and some ulps.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("keras", reason="Keras is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")

import d2v.auto
from d2v import convert
from d2v.hub import KERAS, TENSORFLOW, read_h5, rename
from tests.helpers import ROOT
from tests.keras import backends, golden
from tests.keras.test_parity import BACKENDS, start
from tests.parity import apart, assert_as_close

RELEASED = next((path for path in (ROOT / "shared", ROOT.parent / "shared") if path.is_dir()), ROOT) / "data/tf_golden"
CASES = list(golden.CASES)
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="no ../shared/data/tf_golden")
ROOTS = pytest.mark.parametrize(
    "root", [golden.FOLDER, pytest.param(RELEASED, marks=needs_released)], ids=["own", "released"]
)


def today(name: str) -> str:
    """Today's name of a weight that TensorFlow's model has so."""
    *parts, last = name.removesuffix(":0").replace("_._", "/").split("/")[1:]
    return rename(".".join([*parts, KERAS.get(last, last)]), TENSORFLOW)


def reference(folder: Path) -> tuple[dict, dict]:
    """Golden outputs and gradients' norms, and those of our PyTorch class in float64."""
    wanted = dict(np.load(folder / "golden.npz"))
    file = folder / "tf_model.h5"
    model = convert.read(file)[0] if file.is_file() else d2v.auto.from_pretrained(folder)
    model = model.double().eval()
    inputs = {key: torch.from_numpy(wanted[key]) for key in backends.INPUTS if key in wanted}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    scalar = output.loss if "loss" in output else output.last_hidden_state.square().sum()
    scalar.backward()
    parameters = {rename(key, model.renames): x for key, x in model.named_parameters()}
    exact = {"scalar": scalar} | {key: output[key] for key in output if torch.is_tensor(output[key])}
    for key in ("hidden_states", "attentions"):
        exact |= {f"{key}.{i}": x for i, x in enumerate(output[key])}
    exact |= {f"gradient/{key}": x.grad.norm() for key, x in parameters.items() if x.grad is not None}
    return wanted, {key: x.detach().numpy() for key, x in exact.items()}


def compare(folder: Path, found: dict[str, np.ndarray]) -> None:
    wanted, exact = reference(folder)
    released = folder.parent == RELEASED
    rows = len(wanted["pixel_values"]) if released and "labels" in wanted and wanted["labels"].ndim == 1 else 1

    def tensors(*values) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(x)) for x in values]

    keys = {key for key in wanted if f"output/{key}" in found} - {"loss"}
    assert {"logits", "last_hidden_state"} & keys and "hidden_states.0" in keys and "attentions.0" in keys
    for key in sorted(keys):
        assert_as_close(*tensors(found[f"output/{key}"], wanted[key], exact[key]))
        assert apart(*tensors(wanted[key], exact[key])) < 1e-3  # else PyTorch's class has moved, and ours with it
    if "output/loss" in found:
        mine = tensors(found["output/loss"], found["output/logits"])
        theirs = tensors(wanted["scalar_loss"] / rows, wanted["logits"])
        assert_as_close(mine, theirs, tensors(exact["scalar"], exact["logits"]))

    norms = dict(zip(wanted["names"], wanted["gradient_norms"], strict=True))
    norms = {today(key): value / rows for key, value in norms.items()}
    ours = {key: np.linalg.norm(x) for key, x in found.items() if key.startswith("gradient/")}
    ours = {key.removeprefix("gradient/"): value for key, value in ours.items()}
    prefix = "" if "labels" in wanted else "data2vec_vision."  # as the variables are called, in the model without
    ours = {prefix + key: value for key, value in ours.items()}
    ours = {key: value for key, value in ours.items() if value or key in norms}  # JAX has zeros where no loss takes one
    assert ours.keys() <= norms.keys()
    order = sorted(norms)
    exactly = [exact.get(f"gradient/{key.removeprefix(prefix)}", 0.0) for key in order]  # some no loss takes
    mine, theirs = (np.array([x.get(key, 0.0) for key in order], np.float32) for x in (ours, norms))
    assert_as_close(*tensors(mine, theirs, np.array(exactly)))


@ROOTS
@pytest.mark.parametrize("name", CASES)
def test_torch(root, name):
    compare(root / name, backends.golden(root / name))


@pytest.mark.slow
@ROOTS
@BACKENDS
def test_another_backend(tmp_path, backend, root):
    start(backend, "golden", str(root), str(tmp_path), *CASES)
    for name in CASES:
        compare(root / name, dict(np.load(tmp_path / f"{name}.npz")))


@ROOTS
def test_the_file_is_read_whole(root):
    """Every weight in `tf_model.h5` is one of the model's, and all of the model's are in it."""
    for file in root.glob("*/tf_model.h5"):
        names = backends.weights(backends.load(file.parent))
        prefix = "data2vec_vision." if file.parent.name.startswith("model") else ""
        read = {key.removeprefix(prefix) for key in read_h5(file)}
        assert read == {key for key in names if not key.endswith("num_batches_tracked")}
