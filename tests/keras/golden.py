"""Golden values of d2v's own PyTorch classes, in the form of `../shared/data/tf_golden`: small enough to be kept here.

    python -m tests.keras.golden

wrote `tests/keras/golden/`, once: a case is `config.json`, the weights, and `golden.npz` with inputs, outputs, hidden
states, attentions, loss, and the norm of each trainable weight's gradient. Two cases have their weights in a
`tf_model.h5` as the released TensorFlow classes wrote it, which for the many small ones of segmentation would be large.
"""

import re
from pathlib import Path

import numpy as np
import torch

from d2v.hub import WEIGHTS, rename
from tests.keras import cases

FOLDER = Path(__file__).parent / "golden"
TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 12}
TINY |= {"patch_size": 4, "drop_path_rate": 0.0, "layer_scale_init_value": 0.3}
OWN = {"use_relative_position_bias": True, "num_labels": 5}
DEEP = {"num_hidden_layers": 4, "out_indices": (1, 2, 3, 4), "auxiliary_channels": 6}
CASES = {
    "model_shared_bias": (
        "Data2VecVisionModel",
        TINY | cases.SHARED,
        {"pixel_values": cases.images(2, 3, 12, 12), "bool_masked_pos": torch.arange(18).reshape(2, 9) % 3 == 0},
    ),
    "model_layer_bias": (
        "Data2VecVisionModel",
        TINY | {"use_relative_position_bias": True},
        {"pixel_values": cases.images(2, 3, 12, 16)},
    ),
    "image_classification": (
        "Data2VecVisionForImageClassification",
        TINY | OWN,
        {"pixel_values": cases.images(3, 3, 12, 12), "labels": torch.tensor([4, 0, 2])},
    ),
    "semantic_segmentation": (
        "Data2VecVisionForSemanticSegmentation",
        TINY | OWN | DEEP,
        {"pixel_values": cases.images(1, 3, 12, 12), "labels": cases.label_maps(5, 1, 12, 12)},
    ),
}
H5 = ("model_shared_bias", "image_classification")


def released(name: str, value: torch.Tensor) -> tuple[str, np.ndarray]:
    """A weight as Keras wrote Hugging Face's models of 2022."""
    name = re.sub(r"psp_modules\.blocks\.(\d)\.conv\.", r"psp_modules/\1.1/", name)
    name = name.replace("psp_bottleneck", "bottleneck")
    name = name.replace("convolution.", "conv.").replace("normalization.", "bn.")
    name = re.sub(r"layer\.(\d+)\.", r"layer_._\1.", name)
    module, _, kind = name.rpartition(".")
    if value.ndim > 1 and kind == "weight":
        value = value.T if value.ndim == 2 else value.permute(2, 3, 1, 0)
        kind = "kernel"
    elif re.search(r"(layernorm\w*|bn|fpn1\.1)$", module):
        kind = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean"}.get(kind, "moving_variance")
    module = re.sub(r"\.(?![\d_])", "/", module)
    return f"{module}/{kind}:0", value.contiguous().numpy()


def write_h5(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """A `tf_model.h5` of weights by Hugging Face's names, which without a head have the prefix too."""
    import h5py

    with h5py.File(folder / "tf_model.h5", "w") as file:
        file.create_group("top_level_model_weights")
        for name, value in (released(*item) for item in weights.items() if "num_batches" not in item[0]):
            file[f"{name.partition('/')[0]}/tf_data2_vec_vision/{name}"] = value


def main() -> None:
    for case, (kind, config, inputs) in CASES.items():
        model, folder = cases.stirred(kind, config), FOLDER / case
        model.save_pretrained(folder)
        prefix = "data2vec_vision." if kind == "Data2VecVisionModel" else ""
        names = {key: prefix + rename(key, model.renames) for key in model.state_dict()}
        if case in H5:
            (folder / WEIGHTS).unlink()
            write_h5(folder, {names[key]: value for key, value in model.state_dict().items()})
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        scalar = output.loss if "loss" in output else output.last_hidden_state.square().sum()
        scalar.backward()
        found = {key: value for key, value in cases.flat(output).items() if key != "loss"}
        gradients = {key: x.grad for key, x in model.named_parameters() if x.grad is not None}
        found |= {"scalar_loss": scalar.detach().numpy()} | {key: value.numpy() for key, value in inputs.items()}
        found["names"] = np.array([f"model/{released(names[key], value)[0]}" for key, value in gradients.items()])
        found["gradient_norms"] = np.array([float(value.norm()) for value in gradients.values()], np.float32)
        np.savez_compressed(folder / "golden.npz", **found)


if __name__ == "__main__":
    main()
