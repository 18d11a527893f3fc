"""What the Keras models compute on one backend, in a process of its own.

TensorFlow and PyTorch may not be imported together. So PyTorch's process writes a case's folder, with a checkpoint and
`case.npz`, and `python tests/keras/backends.py cases FOLDER OUT CASE ...` writes `OUT/CASE.npz`. It imports nothing of
the other tests.
"""

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np

import d2v.keras
from d2v.keras.files import transposed, weight_names

BACKEND = keras.backend.backend()
INPUTS = ("pixel_values", "bool_masked_pos", "head_mask", "labels")


def load(folder, **changes):
    """The model of a case's checkpoint."""
    (name,) = d2v.hub.load_config(folder)["architectures"]
    return getattr(d2v.keras, f"TF{name}").from_pretrained(folder, verbose=False, **changes)


def arrays(values: dict) -> dict[str, np.ndarray]:
    """By name, with numbers behind the names of tuples."""
    found = {}
    for name, value in values.items():
        if isinstance(value, tuple):
            found |= {f"{name}.{i}": keras.ops.convert_to_numpy(x) for i, x in enumerate(value)}
        else:
            found[name] = keras.ops.convert_to_numpy(value)
    return found


def objective(output):
    """The loss, or the sum of the squares of the last state."""
    return output["loss"] if "loss" in output else keras.ops.sum(keras.ops.square(output["last_hidden_state"]))


def run(model, inputs: dict, training: bool = False) -> tuple[dict, dict]:
    """Outputs, and the gradients of the objective by weight, laid out as PyTorch has them."""
    options = {"output_attentions": True, "output_hidden_states": True, "training": training}
    weights = model.trainable_weights
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            output = model(inputs, **options)
            scalar = objective(output)
        found = tape.gradient(scalar, weights)
        found = [x if x is None else tf.convert_to_tensor(x) for x in found]
    elif BACKEND == "jax":
        import jax

        def compute(trainable, fixed, inputs):
            output, fixed = model.stateless_call(trainable, fixed, inputs, **options)
            return objective(output), (dict(output), fixed)

        fixed = [x.value for x in model.non_trainable_variables]
        inputs = {name: jax.numpy.asarray(x) for name, x in inputs.items()}
        gradient = jax.jit(jax.grad(compute, has_aux=True))
        found, (output, fixed) = gradient([x.value for x in weights], fixed, inputs)
        for variable, value in zip(model.non_trainable_variables, fixed, strict=True):
            variable.assign(value)
    else:
        output = model(inputs, **options)
        objective(output).backward()
        found = [x.value.grad for x in weights]
    names = {id(weight): name for name, weight in weight_names(model).items()}
    named = {names[id(x)]: value for x, value in zip(weights, found, strict=True) if value is not None}
    gradients = {name: transposed(keras.ops.convert_to_numpy(x), name) for name, x in named.items()}
    return arrays(dict(output.items())), gradients


def train(model, batches: list[dict], optimizer, **options) -> list[float]:
    """The losses of `fit`, each batch once and in this order."""
    losses = []
    note = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: losses.append(float(logs["loss"])))
    model.compile(optimizer, **options)
    for batch in batches:  # Keras's loss is a mean over an epoch's batches
        model.fit(batch, batch_size=len(batch["pixel_values"]), shuffle=False, verbose=0, callbacks=[note])
    return losses


def weights(model) -> dict[str, np.ndarray]:
    """All weights, laid out as PyTorch has them."""
    return {name: transposed(keras.ops.convert_to_numpy(x), name) for name, x in weight_names(model).items()}


def compute(folder: Path) -> dict[str, np.ndarray]:
    """All that a case asks for: outputs, gradients, and a few updates."""
    case, results = np.load(folder / "case.npz"), {}
    inputs = {name: case[name] for name in INPUTS if name in case.files}
    outputs, gradients = run(load(folder), inputs)
    results |= {f"output/{name}": x for name, x in outputs.items()}
    results |= {f"gradient/{name}": x for name, x in gradients.items()}
    if "updates" in case.files:
        model = load(folder)
        optimizer = d2v.keras.build_optimizer(model, 1e-3, weight_decay=0.01)
        kept = ("pixel_values", "labels")
        batches = [{name: inputs[name] for name in kept}] * int(case["updates"])
        results["losses"] = np.array(train(model, batches, optimizer))
        results |= {f"weight/{name}": x for name, x in weights(model).items()}
    return results


def golden(folder: Path) -> dict[str, np.ndarray]:
    """Outputs and gradients of golden values' inputs."""
    case = np.load(folder / "golden.npz")
    outputs, gradients = run(load(folder), {name: case[name] for name in INPUTS if name in case.files})
    return {f"output/{name}": x for name, x in outputs.items()} | {
        f"gradient/{name}": x for name, x in gradients.items()
    }


def main(what: str, source: str, out: str, *cases: str) -> None:
    for case in cases:
        function = {"golden": golden, "cases": compute}[what]
        np.savez(Path(out, f"{case}.npz"), **function(Path(source, case)))
    assert BACKEND == "torch" or "torch" not in sys.modules, "PyTorch was imported too"


if __name__ == "__main__":
    main(*sys.argv[1:])
