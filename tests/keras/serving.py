"""What only TensorFlow does: `python tests/keras/serving.py FOLDER`, with a model in FOLDER/model."""

import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

import d2v.keras
from d2v.errors import InputError

folder = Path(sys.argv[1])
model = d2v.keras.TFData2VecVisionForImageClassification.from_pretrained(folder / "model")
x = np.random.default_rng(0).normal(size=(3, 3, 24, 24)).astype("float32")
wanted = model(x).logits.numpy()

model.export(folder / "served", verbose=False)
served = tf.saved_model.load(folder / "served").signatures["serve"]
assert list(served.structured_input_signature[1]) == ["pixel_values"]
found = served(pixel_values=tf.constant(x))["logits"].numpy()
assert np.allclose(found, wanted, atol=1e-5), np.abs(found - wanted).max()

model.save(folder / "model.keras")
again = keras.saving.load_model(folder / "model.keras")
assert np.array_equal(again(x).logits.numpy(), wanted)

data = tf.data.Dataset.from_tensor_slices({"pixel_values": x, "labels": [0, 1, 2]}).batch(2)
model.compile(d2v.keras.build_optimizer(model, 1e-3, layer_decay=0.8))
try:
    model.fit(
        data.map(lambda each: each | {"pixel_values": tf.transpose(each["pixel_values"], (0, 2, 3, 1))}), verbose=0
    )
except InputError as error:
    assert "channels last" in str(error)
else:
    raise AssertionError("channels last")
assert np.isfinite(model.fit(data, verbose=0).history["loss"]).all()  # goes on where a first attempt failed
assert model.predict(data, verbose=0).logits.shape == (3, 5)

shapes = {"pixel_values": tf.TensorSpec((None, 3, None, None)), "labels": tf.TensorSpec((None,), tf.int64)}
unknown = tf.data.Dataset.from_generator(
    lambda: iter([{"pixel_values": x, "labels": [0, 1, 2]}]), output_signature=shapes
)
try:
    model.fit(unknown, verbose=0)
except InputError as error:
    assert "height and width have to be known" in str(error) and "\n" not in str(error)
else:
    raise AssertionError("a graph that knows no height")
assert "torch" not in sys.modules
print("served")
