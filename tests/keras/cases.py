"""Cases for the Keras models, with what d2v's PyTorch classes say of them in float64 and in fp32."""

import copy
from pathlib import Path

import numpy as np
import torch

import d2v
from d2v.hub import rename
from tests.tiny import TINY_VISION

SMALL = TINY_VISION | {"num_hidden_layers": 2, "layer_scale_init_value": 0.3}
HEADS, LAYERS = SMALL["num_attention_heads"], SMALL["num_hidden_layers"]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def head_mask(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def label_maps(classes: int, *shape: int) -> torch.Tensor:
    """Classes, and a quarter of all pixels ignored."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.25, 255)


SHARED = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True, "use_mask_token": True}
OWN = {"use_relative_position_bias": True, "num_labels": 5}
SEGMENTATION = TINY_VISION | {"num_labels": 5, "use_relative_position_bias": True, "layer_scale_init_value": 0.3}
CASES = {
    "model": (
        "Data2VecVisionModel",
        SMALL | SHARED,
        {
            "pixel_values": images(2, 3, 24, 24),
            "bool_masked_pos": torch.arange(72).reshape(2, 36) % 3 == 0,
            "head_mask": head_mask(LAYERS, HEADS),
        },
    ),
    "model_odd": (  # another grid than the model's, not square, pixels left over, and one image
        "Data2VecVisionModel",
        SMALL | SHARED | {"use_mean_pooling": False, "use_relative_position_bias": True, "hidden_act": "gelu_new"},
        {"pixel_values": images(1, 3, 31, 18), "head_mask": head_mask(HEADS)},
    ),
    "classification": (
        "Data2VecVisionForImageClassification",
        SMALL | OWN,
        {"pixel_values": images(4, 3, 24, 24), "labels": torch.tensor([0, 4, -100, 2]), "updates": 3},
    ),
    "token": (
        "Data2VecVisionForImageClassification",
        SMALL | OWN | {"use_mean_pooling": False, "problem_type": "multi_label_classification"},
        {"pixel_values": images(3, 3, 20, 28), "labels": (torch.arange(15).reshape(3, 5) % 2).float()},
    ),
    "segmentation": (
        "Data2VecVisionForSemanticSegmentation",
        SEGMENTATION | {"auxiliary_concat_input": True, "auxiliary_num_convs": 2},
        {"pixel_values": images(2, 3, 24, 28), "labels": label_maps(5, 2, 30, 41), "updates": 2},
    ),
    "plain_segmentation": (
        "Data2VecVisionForSemanticSegmentation",
        SEGMENTATION | {"use_auxiliary_head": False},
        {"pixel_values": images(1, 3, 24, 24), "labels": label_maps(5, 1, 24, 24)},
    ),
}


def make(name: str):
    """The PyTorch model of a case, in evaluation mode, its weights stirred."""
    kind, config, _ = CASES[name]
    return stirred(kind, config)


def stirred(kind: str, config: dict):
    """A PyTorch model in evaluation mode, its weights stirred."""
    torch.manual_seed(3)
    model = getattr(d2v, kind)(d2v.Data2VecVisionConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases are zero and norms one at first, which would hide mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1 * torch.rand_like(buffer))
    return model


def plain(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def flat(output) -> dict[str, np.ndarray]:
    """Outputs by name, with numbers behind the names of tuples."""
    found = {}
    for name, value in output.items():
        values = {f"{name}.{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
        found |= {key: plain(x) for key, x in values.items()}
    return found


def compute(model, inputs: dict) -> dict[str, np.ndarray]:
    """Outputs, gradients, and updates with AdamW, as `tests/keras/backends.py` computes them."""
    model, dtype = copy.deepcopy(model), next(model.parameters()).dtype
    inputs = {key: x.to(dtype) if getattr(x, "is_floating_point", bool)() else x for key, x in inputs.items()}
    updates = inputs.pop("updates", 0)
    trained = copy.deepcopy(model).train()
    output = model(**inputs, output_attentions=True, output_hidden_states=True)
    loss = output.loss if "loss" in output else output.last_hidden_state.square().sum()
    loss.backward()
    results = {f"output/{name}": x for name, x in flat(output).items()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            results[f"gradient/{rename(name, model.renames)}"] = plain(parameter.grad)
    if updates:
        decayed = [[x for x in trained.parameters() if (x.ndim > 1) == many] for many in (True, False)]
        groups = [{"params": x, "weight_decay": decay} for x, decay in zip(decayed, (0.01, 0.0), strict=True)]
        optimizer, losses = torch.optim.AdamW(groups, lr=1e-3), []
        for _ in range(updates):
            loss = trained(pixel_values=inputs["pixel_values"], labels=inputs["labels"]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        results["losses"] = np.array(losses)
        results |= {f"weight/{rename(name, model.renames)}": plain(x) for name, x in trained.state_dict().items()}
    return results


def write(folder: Path, name: str) -> None:
    """A case's folder: the checkpoint, the inputs, `fp32.npz` and `float64.npz`."""
    model, inputs = make(name), CASES[name][2]
    model.save_pretrained(folder)
    np.savez(folder / "case.npz", **{key: np.asarray(x) for key, x in inputs.items()})
    np.savez(folder / "fp32.npz", **compute(model, dict(inputs)))
    np.savez(folder / "float64.npz", **compute(model.double(), dict(inputs)))
