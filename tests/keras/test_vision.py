"""The Keras models' files, training and messages, on PyTorch's backend, which runs in this process."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

pytest.importorskip("keras", reason="Keras is not installed")

import keras

import d2v.auto
import d2v.keras
from d2v.errors import InputError
from d2v.keras import Data2VecVisionConfig, build_optimizer
from d2v.keras.files import read_weights
from d2v.keras.interpolation import adaptive_mean, bicubic, bilinear
from d2v.keras.optim import layer_of
from tests.helpers import ROOT
from tests.keras import backends, cases
from tests.keras.test_parity import start


def config(name: str = "classification", **changes) -> Data2VecVisionConfig:
    return Data2VecVisionConfig(**cases.CASES[name][1] | changes)


def classifier(**changes):
    keras.utils.set_random_seed(0)
    return d2v.keras.TFData2VecVisionForImageClassification(config(**changes))


def segmenter(**changes):
    keras.utils.set_random_seed(0)
    return d2v.keras.TFData2VecVisionForSemanticSegmentation(config("segmentation", **changes))


def batch(name: str = "classification") -> dict[str, np.ndarray]:
    inputs = cases.CASES[name][2]
    return {key: inputs[key].numpy() for key in ("pixel_values", "labels")}


def pixels(*shape: int) -> np.ndarray:
    return cases.images(*shape).numpy()


# Outputs and messages


def test_outputs_by_name_position_and_key():
    model, x = classifier(), batch()
    output = model(x, output_attentions=True)
    assert output.keys() == ("loss", "logits", "attentions") and output.hidden_states is None
    assert output[0] is output.loss is output["loss"] and output[1:] == (output.logits, output.attentions)
    assert dict(output).keys() == {"loss", "logits", "attentions"} and output.get("hidden_states", 3) == 3
    assert "logits" in output and "hidden_states" not in output and len(output) == 3
    with pytest.raises(KeyError):
        output["hidden_states"]
    with pytest.raises(AttributeError, match="logit"):
        output.logit  # noqa: B018
    plain = model(x["pixel_values"], return_dict=False)
    assert type(plain) is tuple and torch.equal(plain[0], output.logits)
    positional = model(x["pixel_values"], None, True, True)
    assert len(positional.hidden_states) == 3 and len(positional.attentions) == 2
    with_config = classifier(extra={"output_hidden_states": True})
    assert "hidden_states" in with_config(x["pixel_values"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": pixels(2, 24, 24, 3)}, r"shape \(2, 24, 24, 3\) \(channels last; ops.transpose"),
        ({"pixel_values": pixels(2, 4, 24, 24)}, r"should be \(B, 3, height, width\)"),
        ({"pixel_values": pixels(3, 24, 24)}, r"should be \(B, 3, height, width\)"),
        ({"pixel_values": np.zeros((2, 3, 24, 24), np.uint8)}, "pixel_values are uint8; should be floating point"),
        ({"pixel_values": "photo.jpg"}, "should be a float tensor or array, not str"),
        ({"pixel_values": pixels(2, 3, 3, 24)}, "3 x 24 pixels are smaller than patch_size 4"),
        ({}, "should be a float tensor or array, not NoneType"),
        (
            {"pixel_values": pixels(2, 3, 24, 24), "head_mask": np.ones(3)},
            r"head_mask has shape \(3,\); should be \(4,\) or",
        ),
        ({"pixel_values": pixels(2, 3, 24, 24), "label": 1}, "takes no label; it takes pixel_values, head_mask"),
        ({"pixel_values": pixels(2, 3, 24, 24), "labels": np.array([0, 5])}, "label 5 is outside the 5 classes"),
        ({"pixel_values": pixels(2, 3, 24, 24), "labels": np.array([0, -1])}, "label -1 is outside the 5 classes"),
        ({"pixel_values": pixels(2, 3, 24, 24), "labels": np.array([0])}, r"shape \(1,\); should be \(2,\)"),
        ({"pixel_values": pixels(2, 3, 24, 24), "labels": np.zeros((2, 4))}, r"shape \(2, 4\); should be \(2, 5\)"),
    ],
)
def test_bad_input_is_one_line(inputs, message):
    with pytest.raises(InputError, match=message) as error:
        classifier()(inputs)
    assert "\n" not in str(error.value)


def test_bad_maps_and_masks_are_one_line():
    model, x = segmenter(), batch("segmentation")
    for labels, message in (
        (x["labels"][0], r"should be \(B, height, width\)"),
        (x["labels"].astype("float32"), "labels are float32; should be whole numbers"),
        (x["labels"] * 2, "is outside the 5 classes; 255 counts for nothing"),
    ):
        with pytest.raises(InputError, match=message):
            model(x["pixel_values"], labels=labels)
    with pytest.raises(InputError, match="at least 2 x 2 patches; the images have 1 x 6"):
        model(pixels(1, 3, 4, 24))
    with pytest.raises(InputError, match="out_indices should be four different ones of 1 to 5"):
        segmenter(out_indices=(1, 2, 3, 9))
    with pytest.raises(InputError, match="is for a model with a mask token"):
        d2v.keras.TFData2VecVisionModel(config())(pixels(1, 3, 24, 24), bool_masked_pos=np.ones((1, 36), bool))
    masked = d2v.keras.TFData2VecVisionModel(config("model"))
    with pytest.raises(InputError, match=r"bool_masked_pos has shape \(1, 35\); should be \(1, 36\)"):
        masked(pixels(1, 3, 24, 24), bool_masked_pos=np.ones((1, 35), bool))


# The faults of the released classes


def test_each_scale_pools_the_same_map(monkeypatch):
    """The released pyramid pooling gave each scale what the scale before had made."""
    head, seen = segmenter().decode_head, []
    import d2v.keras.segmentation as module

    resample = module.resample

    def note(x, size, matrix=bilinear):
        if matrix is adaptive_mean:
            seen.append(x)
        return resample(x, size, matrix)

    monkeypatch.setattr(module, "resample", note)
    maps = [torch.randn(1, size, size, 32) for size in (8, 4, 2, 1)]
    head(maps)
    assert len(seen) == 4 and all(x is seen[0] for x in seen)


def test_an_ignored_label_counts_for_nothing_and_the_auxiliary_head_can_be_off():
    x = batch("segmentation")
    for changes in ({}, {"use_auxiliary_head": False}):
        model = segmenter(**changes)
        everywhere = np.full_like(x["labels"], 255)
        output = model(x["pixel_values"], labels=everywhere)
        assert float(output.loss) == 0 and ("auxiliary_logits" in output) == (changes == {})
        assert float(model(x).loss) > 1


def test_statistics_move_in_fit_and_not_in_predict():
    model, x = segmenter(), batch("segmentation")
    model.compile(keras.optimizers.SGD(0.0))
    before = backends.weights(model)
    predicted = model.predict(x, verbose=0)
    model.evaluate(x, verbose=0)
    assert predicted.logits.shape == (2, 5, 24, 28) and "loss" not in predicted
    assert all(np.array_equal(value, before[name]) for name, value in backends.weights(model).items())
    model.fit(x, epochs=2, batch_size=2, verbose=0)
    after = backends.weights(model)
    changed = {name.rpartition(".")[2] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert after["fpn1.1.num_batches_tracked"] == 2


# Training


def test_fit_takes_labels_beside_and_as_y():
    x = batch()
    losses = []
    for data in ((x, None), (x["pixel_values"], x["labels"]), ({"pixel_values": x["pixel_values"]}, x["labels"])):
        model = classifier()
        model.compile(keras.optimizers.SGD(0.01))
        losses.append(model.fit(*data, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == losses[1] == losses[2] and losses[0][1] < losses[0][0]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*(torch.from_numpy(value) for value in x.values())), batch_size=4
    )
    model = classifier()
    model.compile(keras.optimizers.SGD(0.01))
    assert model.fit(loader, epochs=2, verbose=0).history["loss"] == losses[0]


def test_an_image_alone_is_pooled_to_running_statistics():
    """As in PyTorch: one value a channel has no variance."""
    model, x = segmenter(), pixels(1, 3, 24, 24)
    norms = [layer for layer in model._flatten_layers() if type(layer).__name__ == "BatchNorm"]
    before = [keras.ops.convert_to_numpy(norm.variance).copy() for norm in norms]
    model(x, training=True)
    counts = [int(norm.count) for norm in norms]
    assert counts.count(0) == 1 and counts.count(1) == len(norms) - 1
    for norm, variance, count in zip(norms, before, counts, strict=True):
        assert (keras.ops.convert_to_numpy(norm.variance) == variance).all() == (count == 0)


def test_fit_with_a_loss_and_metrics_of_kerass(tmp_path):
    x = batch()
    labels = np.array([0, 4, 1, 2])
    model = classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(build_optimizer(model, 1e-2), loss=loss, metrics=["accuracy"])
    saved = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.keras", monitor="accuracy", mode="max", save_best_only=True
    )
    history = model.fit(x["pixel_values"], labels, epochs=12, verbose=0, callbacks=[saved]).history
    assert history["accuracy"][-1] == 1 and history["loss"][-1] < history["loss"][0]
    again = keras.saving.load_model(tmp_path / "best.keras")
    assert type(again) is type(model) and again.config.to_dict() == model.config.to_dict()
    assert again.evaluate({"pixel_values": x["pixel_values"], "labels": labels}, verbose=0)[1] == 1
    # compiled anew without a loss, it is the model's own
    model.compile("sgd")
    assert model.evaluate(x, verbose=0, return_dict=True)["loss"] == pytest.approx(float(model(x).loss), rel=1e-5)


def test_metrics_of_pixels_see_maps_of_the_labels_size():
    model, x = segmenter(), batch("segmentation")
    metric = keras.metrics.MeanIoU(5, ignore_class=255, sparse_y_pred=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile("sgd", loss=loss, metrics=[metric])
    value, _ = model.evaluate(x["pixel_values"], x["labels"], verbose=0)
    plain = segmenter(use_auxiliary_head=False)
    plain.set_weights([weight.numpy() for weight in model.weights if "auxiliary_head" not in weight.path])
    assert value == pytest.approx(float(plain(x).loss), rel=1e-5)


def test_what_cannot_be_learnt_is_said():
    x = batch()
    model = classifier()
    model.compile("sgd")
    for data, options, message in (
        ((x["pixel_values"], None), {}, "no labels: they stand in the inputs"),
        ((x["pixel_values"], [0, 1, 2, 3]), {}, "labels are a list; should be an array or a tensor"),
        ((x["pixel_values"], x["labels"] + 3), {}, "label 7 is outside the 5 classes"),
        ((x["pixel_values"], np.zeros(4, int)), {"sample_weight": np.ones(4)}, "takes no weights of rows or classes"),
    ):
        with pytest.raises(InputError, match=message):
            model.fit(*data, verbose=0, **options)


def test_a_model_that_was_not_trained_yet_is_saved_and_trained_on(tmp_path):
    model, x = classifier(), batch()
    model.compile(build_optimizer(model, 1e-2))
    model.save(tmp_path / "new.keras")
    again = keras.saving.load_model(tmp_path / "new.keras")
    losses = [each.fit(x, None, 4, 2, 0, shuffle=False).history["loss"] for each in (model, again)]
    assert losses[0] == losses[1] and losses[0][1] < losses[0][0]


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_heads_of_a_model_that_can_mask_train_without_a_warning(make, recwarn):
    model = make(use_mask_token=True)
    assert "mask_token" not in {weight.name for weight in model.trainable_weights}
    model.compile(build_optimizer(model, 1e-3))
    labels = None if make is classifier else np.zeros((2, 24, 24), np.int64)
    x = batch() if labels is None else {"pixel_values": pixels(2, 3, 24, 24), "labels": labels}
    assert np.isfinite(model.fit(x, verbose=0).history["loss"]).all()
    assert not [str(warning.message) for warning in recwarn if "radients" in str(warning.message)]
    alone = d2v.keras.TFData2VecVisionModel(config(use_mask_token=True))
    assert "mask_token" in {weight.name for weight in alone.trainable_weights}


def test_mixed_precision():
    model = d2v.keras.TFData2VecVisionForImageClassification(config(), dtype="mixed_bfloat16")
    x = batch()
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    output = model(x, output_hidden_states=True)
    assert (
        output.hidden_states[-1].dtype == output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    )
    model.compile(build_optimizer(model, 1e-3))
    assert np.isfinite(model.fit(x, verbose=0).history["loss"]).all()


def test_dropout_and_droppath_are_of_training():
    x = pixels(4, 3, 24, 24)
    for changes in ({"drop_path_rate": 0.5}, {"hidden_dropout_prob": 0.2}, {"attention_probs_dropout_prob": 0.2}):
        model = classifier(**changes)
        outputs = [model(x, training=training).logits for training in (False, False, True, True)]
        assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[2], outputs[3])


def test_layerwise_rates_and_decay_are_those_of_the_recipe():
    from d2v.config import Optim
    from d2v.training.optim import param_groups

    for name in ("classification", "segmentation"):
        torch_model = cases.make(name)
        groups = param_groups(torch_model, Optim(lr=1.0, layer_decay=0.5, weight_decay=0.1))
        by_id = {id(x): (group["lr"], group["weight_decay"]) for group in groups for x in group["params"]}
        wanted = {d2v.hub.rename(key, torch_model.renames): by_id[id(x)] for key, x in torch_model.named_parameters()}
        kind, entries, _ = cases.CASES[name]
        model = getattr(d2v.keras, f"TF{kind}")(Data2VecVisionConfig(**entries))
        optimizer = build_optimizer(model, 1.0, layer_decay=0.5, weight_decay=0.1)
        optimizer.build(model.trainable_weights)
        of_each = zip(optimizer.scales, optimizer.decays, strict=True)
        found = dict(zip((x.path for x in model.trainable_weights), of_each, strict=True))
        names = {key: x.path for key, x in backends.weight_names(model).items() if x.trainable}
        assert {key: found[path] for key, path in names.items()} == wanted
    assert layer_of("m/data2vec_vision/encoder/layer-11/lambda_1", 12) == 12


# Files


def test_folders_open_both_ways(tmp_path):
    """d2v's PyTorch class, Keras's, and Hugging Face's: the same output and no weight missing."""
    import transformers

    for name in ("classification", "plain_segmentation", "model"):
        theirs, x = cases.make(name), pixels(1, 3, 24, 24)
        theirs.save_pretrained(tmp_path / name)
        model = backends.load(tmp_path / name)
        model.save_pretrained(tmp_path / f"{name}_again")
        first, second = (read_weights(tmp_path / folder) for folder in (name, f"{name}_again"))
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) and first[key].dtype == second[key].dtype for key in first)
        assert d2v.auto.model_class(tmp_path / f"{name}_again") is type(theirs)
        kind = getattr(transformers, type(theirs).__name__)
        opened, report = kind.from_pretrained(tmp_path / f"{name}_again", output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        output = opened.eval()(torch.from_numpy(x))[0]
        assert torch.allclose(output, model(x)[0], atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "classification_again/config.json").read_text())
    assert config["architectures"] == ["Data2VecVisionForImageClassification"] and config["dtype"] == "float32"


def test_a_model_without_a_head_gets_one_and_the_other_way_round(tmp_path, capsys):
    cases.make("classification").save_pretrained(tmp_path)
    model = d2v.keras.TFData2VecVisionModel.from_pretrained(tmp_path)
    assert "in the checkpoint but not used: classifier.bias, classifier.weight" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "base")
    again = d2v.keras.TFData2VecVisionForImageClassification.from_pretrained(tmp_path / "base", num_labels=7)
    assert "newly initialised, since the checkpoint lacks them: classifier.bias" in capsys.readouterr().out
    assert again(pixels(1, 3, 24, 24)).logits.shape == (1, 7)
    seven = d2v.keras.TFData2VecVisionForImageClassification.from_pretrained(tmp_path, num_labels=7)
    assert "of another shape in the checkpoint: classifier.bias (5,) instead of (7,)" in capsys.readouterr().out
    states = [each(pixels(1, 3, 24, 24), output_hidden_states=True).hidden_states for each in (seven, model)]
    assert torch.equal(states[0][-1], states[1][-1])


@pytest.mark.parametrize("size", [32, (16, 40)])
def test_loading_at_another_image_size_resizes_positions_as_pytorchs_class(tmp_path, size, capsys):
    of_layers = {"use_relative_position_bias": True, "use_shared_relative_position_bias": False}
    for name, changes in (("model", of_layers), ("classification", {})):
        theirs = cases.make(name)
        theirs.save_pretrained(tmp_path)
        found = backends.weights(backends.load(tmp_path, image_size=size, **changes))
        theirs = type(theirs).from_pretrained(tmp_path, image_size=size, **changes)
        assert capsys.readouterr().out == ""
        wanted = {d2v.hub.rename(key, theirs.renames): value.numpy() for key, value in theirs.state_dict().items()}
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():  # tables by the same code, positions by an interpolation of each
            assert found[key] == pytest.approx(value, rel=0, abs=1e-6 if key.endswith("position_embeddings") else 0)
    with pytest.raises(InputError, match="image_size 3 is smaller than patch_size 4"):
        backends.load(tmp_path, image_size=3)


def test_files_that_do_not_fit_are_one_line(tmp_path):
    pytest.importorskip("h5py")
    cls = d2v.keras.TFData2VecVisionForImageClassification
    cases.make("classification").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has shape .* the configuration asks for"):
        cls.from_pretrained(tmp_path, intermediate_size=80)
    with pytest.raises(InputError, match="unknown configuration key 'hidden'"):
        cls.from_pretrained(tmp_path, hidden=80)
    weights = tmp_path / "model.safetensors"
    (tmp_path / "tf_model.h5").write_bytes(b"not read, since safetensors come first")
    cls.from_pretrained(tmp_path)
    kept = weights.read_bytes()
    weights.write_bytes(kept[:1000])
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        cls.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="tf_model.h5: damaged, or not an HDF5 file"):
        cls.from_pretrained(tmp_path)
    (tmp_path / "tf_model.h5").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="no model.safetensors or tf_model.h5; pickles are not opened here"):
        cls.from_pretrained(tmp_path)
    d2v.Data2VecTextModel(d2v.Data2VecTextConfig(vocab_size=9, hidden_size=12)).save_pretrained(tmp_path / "text")
    with pytest.raises(InputError, match="model_type is 'data2vec-text'; Data2VecVisionConfig reads"):
        cls.from_pretrained(tmp_path / "text")
    save_file({"conv1.weight": np.zeros((2, 2), np.float32)}, weights)
    with pytest.raises(InputError, match="not one weight of TFData2VecVisionForImageClassification"):
        cls.from_pretrained(tmp_path)


def test_half_precision_files_are_read(tmp_path):
    model = cases.make("classification")
    for dtype in (torch.bfloat16, torch.float16):
        model.to(dtype).save_pretrained(tmp_path)
        found = backends.weights(backends.load(tmp_path))
        assert found["classifier.weight"].dtype == np.float32
        assert np.array_equal(found["classifier.weight"], model.classifier.weight.float().detach().numpy())


# Interpolation, imports


@pytest.mark.parametrize(("old", "new"), [(4, 7), (9, 3), (5, 5), (1, 3), (6, 16)])
def test_interpolation_is_pytorchs(old, new):
    x = torch.randn(1, 1, old, 1, dtype=torch.float64)
    for matrix, mode in ((bilinear, "bilinear"), (bicubic, "bicubic")):
        wanted = torch.nn.functional.interpolate(x, size=(new, 1), mode=mode).flatten()
        assert torch.from_numpy(matrix(old, new)) @ x.flatten() == pytest.approx(wanted.numpy(), abs=1e-12)
    wanted = torch.nn.functional.adaptive_avg_pool2d(x, (new, 1)).flatten()
    assert torch.from_numpy(adaptive_mean(old, new)) @ x.flatten() == pytest.approx(wanted.numpy(), abs=1e-12)


def test_without_keras_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name == "d2v.keras" or name.startswith("d2v.keras.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(
        ImportError, match=r'^d2v.keras needs Keras 3: pip install -e "\.\[keras\]" in the clone of d2v and one of'
    ) as error:
        importlib.import_module("d2v.keras")
    assert "\n" not in str(error.value)


def test_import_d2v_imports_neither():
    code = "import d2v, d2v.processors.image, sys; print({'torch', 'keras', 'tensorflow', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
    assert all(getattr(d2v, name).__name__ == name for name in d2v.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Data2Vec'"):
        d2v.Data2Vec  # noqa: B018


@pytest.mark.slow
def test_tensorflow_serves_and_saves(tmp_path):
    """SavedModel, `.keras`, tf.data, and a graph that knows no height, in a process of TensorFlow's."""
    cases.make("classification").save_pretrained(tmp_path / "model")
    assert "served" in start("tensorflow", str(tmp_path), script="serving")
