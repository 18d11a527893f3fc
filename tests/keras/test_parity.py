"""The Keras models say what d2v's PyTorch classes say, on every backend: outputs, states, gradients, updates.

PyTorch's backend runs in this process, the others in one of their own each.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("keras", reason="Keras is not installed")

from d2v.hub import rename
from tests.helpers import ROOT
from tests.keras import backends, cases
from tests.parity import assert_as_close

FAST = {"tensorflow": ["classification"], "jax": ["token"]}
BACKENDS = pytest.mark.parametrize("backend", ["tensorflow", "jax"])


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A folder a case."""
    folder = tmp_path_factory.mktemp("cases")
    for name in cases.CASES:
        cases.write(folder / name, name)
    return folder


def start(backend: str, *arguments: str, script: str = "backends") -> str:
    """Run a script of this folder on a backend; returns what it printed."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, str(ROOT / f"tests/keras/{script}.py"), *arguments]
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(folder: Path, found: dict[str, np.ndarray]) -> None:
    """As close to float64 as PyTorch's fp32 is, twice that and some ulps; updates by the change of all weights."""
    fp32, exact = dict(np.load(folder / "fp32.npz")), dict(np.load(folder / "float64.npz"))
    for part in ("output/", "gradient/"):
        names = {name for name in exact if name.startswith(part)}
        mine = {name for name in found if name.startswith(part)}
        # JAX has zeros where PyTorch has no gradient, as of a mask token without a mask.
        assert names <= mine and not any(part == "output/" or found[name].any() for name in mine - names)
        groups = [[name] for name in sorted(names)] if part == "output/" else [sorted(names)]
        for group in groups:
            if group[0] == "output/loss":  # it comes from logits, and is as uncertain
                group = ["output/loss", "output/logits"]
            assert_as_close(*([torch.from_numpy(np.asarray(x[name])) for name in group] for x in (found, fp32, exact)))
    if "losses" in exact:
        assert found["losses"] == pytest.approx(exact["losses"], rel=1e-4)
        before = {name: np.asarray(x) for name, x in weights_before(folder).items()}
        names = [name for name in before if not name.endswith("num_batches_tracked")]
        wanted = np.concatenate([(exact[f"weight/{name}"] - before[name]).ravel() for name in names])
        moved = np.concatenate([(found[f"weight/{name}"] - before[name]).ravel() for name in names])
        assert np.linalg.norm(moved - wanted) < 0.01 * np.linalg.norm(wanted)
        for name in before.keys() - set(names):
            assert found[f"weight/{name}"] == exact[f"weight/{name}"]


def weights_before(folder: Path) -> dict:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", cases.CASES)
def test_torch(folder, name):
    compare(folder / name, backends.compute(folder / name))


def compare_all(folder: Path, out: Path, backend: str, names: list[str]) -> None:
    start(backend, "cases", str(folder), str(out), *names)
    for name in names:
        compare(folder / name, dict(np.load(out / f"{name}.npz")))


@BACKENDS
def test_another_backend(folder, tmp_path, backend):
    compare_all(folder, tmp_path, backend, FAST[backend])


@pytest.mark.slow
@BACKENDS
def test_another_backend_in_all_cases(folder, tmp_path, backend):
    compare_all(folder, tmp_path, backend, list(cases.CASES))


def test_names_are_a_bijection(folder):
    """Each weight of PyTorch's class is one of Keras's, by the name on disk."""
    for name in cases.CASES:
        model = cases.make(name)
        theirs = [rename(key, model.renames) for key in model.state_dict()]
        assert sorted(backends.weights(backends.load(folder / name))) == sorted(theirs)
