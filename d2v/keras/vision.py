"""data2vec-vision on Keras 3, under the names and arguments of Hugging Face's TensorFlow classes.

Shapes: B batch, P patches, D width, H heads, C classes.
"""

import inspect
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from d2v.errors import InputError
from d2v.keras.checks import check_head_mask, check_mask, check_pixels
from d2v.keras.files import load_weights, save
from d2v.keras.interpolation import resample
from d2v.keras.layers import BatchNorm, MainLayer, channels_first, channels_last, normal
from d2v.keras.losses import check_labels, classification, pixels
from d2v.keras.outputs import make_output
from d2v.keras.segmentation import FCNHead, UperHead, double
from d2v.models.configuration import Data2VecVisionConfig, sides


class VisionModel(keras.Model):
    """What the three models share: files, and training with `compile` and `fit`.

    With `compile(loss=None)` the model's own loss is learnt: labels stand in the inputs' dictionary, or are `fit`'s y.
    With a loss or metrics of Keras's these get the labels and the logits, classes last and of the labels' size.

    Attributes:
        config: what it was built from; `config.json` is the same for PyTorch.
        has_head: whether it has more than the encoder.
    """

    has_head = True

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False, **options):
        super().__init__(**options)
        self.config, self.add_pooling_layer = config, add_pooling_layer
        self.own_loss = True
        self.build()

    def build(self, input_shape=None):
        """Make all layers; done when the model is made, since the configuration says all sizes."""
        if not self.built:
            self.make_layers()

    def make_layers(self) -> None:
        """Make and build the layers."""
        self.data2vec_vision = MainLayer(
            self.config, self.add_pooling_layer, name="data2vec_vision", dtype=self.dtype_policy
        )
        self.data2vec_vision.build()
        mask_token = self.data2vec_vision.embeddings.mask_token
        if self.has_head and mask_token is not None:
            mask_token.trainable = False  # a head masks nothing, and Keras would warn of a weight without gradient

    def __call__(self, *args, **kwargs):
        """Check the input, then call: Keras wraps what is raised within in many lines. Options may be positional."""
        values = dict(zip(inspect.signature(self.call).parameters, args, strict=False)) | kwargs
        self.read(values)
        return super().__call__(values.pop("pixel_values"), **values)

    def read(self, values: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, checked; a dictionary in the place of the first stands for all.

        Raises:
            InputError: one that is not known, or an input of the wrong shape or type.
        """
        if isinstance(values.get("pixel_values"), dict):
            values = values | {"pixel_values": None} | values["pixel_values"]
        names = inspect.signature(self.call).parameters
        if unknown := sorted(set(values) - set(names)):
            raise InputError(f"{type(self).__name__} takes no {unknown[0]}; it takes {', '.join(names)}")
        check_pixels(self.config, values.get("pixel_values"))
        check_mask(self.config, values["pixel_values"], values.get("bool_masked_pos"))
        check_head_mask(self.config, values.get("head_mask"))
        if values.get("labels") is not None:
            self.check_labels(values["labels"], values["pixel_values"])
        return values

    def check_labels(self, labels, pixel_values) -> None:
        """Raise InputError for labels that the loss cannot take."""

    def asked(self, name: str, value: bool | None) -> bool:
        """An argument that is None is as the configuration says, by default what costs nothing."""
        return bool(self.config.extra.get(name, name == "return_dict") if value is None else value)

    def answer(self, inputs: dict[str, Any], states, attentions, **values):
        """The output of a call."""
        if self.asked("output_hidden_states", inputs.get("output_hidden_states")):
            values["hidden_states"] = states
        if self.asked("output_attentions", inputs.get("output_attentions")):
            values["attentions"] = attentions
        order = ("loss", "logits", "last_hidden_state", "pooler_output", "hidden_states", "attentions")
        output = make_output(**{name: values.pop(name, None) for name in order}, **values)
        return output if self.asked("return_dict", inputs.get("return_dict")) else output.to_tuple()

    # Training

    def compile(self, optimizer="rmsprop", loss=None, **options):
        """As Keras's, but that without a loss the model's own is learnt."""
        self.own_loss = loss is None
        super().compile(optimizer=optimizer, loss=loss, **options)
        if self.optimizer is not None:  # not in the first step, which in a graph may fail half way
            self.optimizer.build(self.trainable_variables)

    def compile_from_config(self, config):
        """As Keras's, which leaves out models with a `compile` of their own."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def arrange(self, data) -> tuple:
        """A batch with its labels where they are used: in the inputs for the model's own loss, else as y alone."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x = dict(x) if isinstance(x, dict) else {"pixel_values": x}
        given = x.pop("labels", None)
        y = given if y is None else y
        if y is None:
            raise InputError('no labels: they stand in the inputs, {"pixel_values": ..., "labels": ...}, or are y')
        if not self.own_loss:
            return x, y, weight
        if weight is not None:
            raise InputError("the model's own loss takes no weights of rows or classes; compile with a loss that does")
        return x | {"labels": y}, y, None

    def train_step(self, *args):
        """Keras's, of which JAX's has a state before the batch."""
        return super().train_step(*args[:-1], self.arrange(args[-1]))

    def test_step(self, *args):
        """As `train_step`."""
        return super().test_step(*args[:-1], self.arrange(args[-1]))

    def predict_step(self, *args):
        """As `train_step`; labels are not looked at."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        x = {name: value for name, value in x.items() if name != "labels"} if isinstance(x, dict) else x
        return super().predict_step(*args[:-1], (x,))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The model's own loss, or that of `compile`."""
        if not self.own_loss:
            y = x.get("labels") if y is None and isinstance(x, dict) else y
            return super().compute_loss(x, y, self.scores(y_pred, y), sample_weight, training)
        return sum(self.losses, y_pred["loss"])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """The metrics of `compile`."""
        y = x.get("labels") if y is None and isinstance(x, dict) else y
        return super().compute_metrics(x, y, self.scores(y_pred, y), sample_weight)

    def scores(self, output, labels):
        """What losses and metrics of Keras's compare with labels."""
        return output["logits"]

    def fit(self, x=None, y=None, *args, **options):
        """As Keras's; arrays are checked before, since compiled code cannot say what is wrong with them."""
        self.check_arrays(x, y)
        return super().fit(x, y, *args, **options)

    def evaluate(self, x=None, y=None, *args, **options):
        """As Keras's, with `fit`'s check."""
        self.check_arrays(x, y)
        return super().evaluate(x, y, *args, **options)

    def predict(self, x, *args, **options):
        """As Keras's, with `fit`'s check; labels are not looked at."""
        x = {name: value for name, value in x.items() if name != "labels"} if isinstance(x, dict) else x
        self.check_arrays(x, None)
        return super().predict(x, *args, **options)

    def check_arrays(self, x, y) -> None:
        """Raise InputError for lists, and for labels, given as arrays, that are no classes."""
        inputs = x if isinstance(x, dict) else {"pixel_values": x}
        inputs = inputs if y is None else inputs | {"labels": y}
        for name, value in inputs.items():
            if isinstance(value, list | tuple):
                raise InputError(f"{name} are a {type(value).__name__}; should be an array or a tensor")
        if self.own_loss and all(hasattr(inputs.get(name), "shape") for name in ("pixel_values", "labels")):
            self.check_labels(inputs["labels"], inputs["pixel_values"])

    # Files

    def get_config(self) -> dict[str, Any]:
        """What a `.keras` file says of the model."""
        return {
            "config": self.config.to_dict(),
            "add_pooling_layer": self.add_pooling_layer,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """A new model of what `get_config` gave."""
        return cls(**config | {"config": Data2VecVisionConfig.from_dict(config["config"])})

    def get_build_config(self) -> None:
        """A model is built when it is made."""

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **options):
        """As Keras's; what is served takes `pixel_values` of the configuration's size, of any number of images."""
        if input_signature is None:
            height, width = (
                size * patch for size, patch in zip(self.config.grid(), sides(self.config.patch_size), strict=True)
            )
            shape = (None, self.config.num_channels, height, width)
            spec = keras.InputSpec(shape=shape, dtype=self.input_dtype, name="pixel_values")
            input_signature = [{"pixel_values": spec}]
        super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, *, dtype: Any = None, verbose: bool = True, **config_changes):
        """A model with the configuration and weights of a folder or hub repository.

        Args:
            source: folder with `config.json` and `model.safetensors`, as every class of d2v and Hugging Face's writes
                it, or TensorFlow's old `tf_model.h5`; or a hub id, with `@revision` behind it for another branch.
            dtype: of the weights, or a policy such as "mixed_bfloat16"; by default Keras's.
            verbose: print which weights were missing, unexpected or of another shape.
            **config_changes: fields of the configuration that are to differ, such as `drop_path_rate=0.0`.

        Raises:
            InputError: there is no such model, or its weights do not fit.
        """
        model = cls(Data2VecVisionConfig.from_pretrained(source, **config_changes), dtype=dtype)
        report = load_weights(model, source)
        if verbose and str(report):
            print(report)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which d2v's PyTorch classes and Hugging Face's open."""
        save(self, folder)


@keras.saving.register_keras_serializable("d2v")
class TFData2VecVisionModel(VisionModel):
    """Images to contextual patches.

    Args:
        config: sizes and options.
        add_pooling_layer: with a `pooler_output`.
        **options: of `keras.Model`: name, dtype.
    """

    has_head = False

    def call(
        self,
        pixel_values=None,
        bool_masked_pos=None,
        head_mask=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        """Encode a batch of images.

        Args:
            pixel_values: (B, channels, height, width) float, normalised; of any size from one patch on. Or a dictionary
                of all arguments.
            bool_masked_pos: (B, P), true at patches to replace by the mask token.
            head_mask: (H,) or (layers, H), a factor for each head's weights.
            output_attentions, output_hidden_states: return them; by default as the configuration says, else not.
            return_dict: False for a plain tuple.
            training: with dropout and DropPath.

        Raises:
            InputError: an input has the wrong shape or type, or the model has no mask token.
        """
        names = ("pixel_values", "bool_masked_pos", "head_mask")
        options = ("output_attentions", "output_hidden_states", "return_dict")
        given = (pixel_values, bool_masked_pos, head_mask, output_attentions, output_hidden_states, return_dict)
        inputs = self.read(dict(zip((*names, *options), given, strict=True)))
        last, pooled, states, attentions = self.data2vec_vision(
            inputs["pixel_values"],
            bool_masked_pos=inputs["bool_masked_pos"],
            head_mask=inputs["head_mask"],
            training=training,
        )
        return self.answer(inputs, states, attentions, last_hidden_state=last, pooler_output=pooled)


@keras.saving.register_keras_serializable("d2v")
class TFData2VecVisionForImageClassification(VisionModel):
    """A linear layer over the pooled patches, or over the class token.

    Args:
        config: sizes and options; `num_labels` or `id2label` say the classes.
        **options: of `keras.Model`: name, dtype.
    """

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = True, **options):
        super().__init__(config, add_pooling_layer, **options)

    def make_layers(self) -> None:
        """Make and build the layers."""
        super().make_layers()
        self.classifier = layers.Dense(
            self.config.num_labels, kernel_initializer=normal(self.config), name="classifier", dtype=self.dtype_policy
        )
        self.classifier.build((None, self.config.hidden_size))

    def call(
        self,
        pixel_values=None,
        head_mask=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        labels=None,
        training=False,
    ):
        """Logits over the classes, and the mean loss that fits the labels.

        Args:
            pixel_values, head_mask, output_attentions, output_hidden_states, return_dict, training: as in
                `TFData2VecVisionModel.call`.
            labels: as `d2v.losses.classification` takes them: (B,) classes, (B, C) zeros and ones, or values.

        Raises:
            InputError: labels are no classes or of the wrong shape, or another input is wrong.
        """
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        options |= {"return_dict": return_dict, "labels": labels}
        inputs = self.read({"pixel_values": pixel_values, "head_mask": head_mask} | options)
        _, pooled, states, attentions = self.data2vec_vision(
            inputs["pixel_values"], head_mask=inputs["head_mask"], training=training
        )
        logits, loss = self.classifier(pooled), None
        if inputs["labels"] is not None:
            loss = classification(logits, inputs["labels"], self.config.problem_type)
        return self.answer(inputs, states, attentions, loss=loss, logits=logits)

    def check_labels(self, labels, pixel_values) -> None:
        """Raise InputError for labels that are no classes, or of the wrong shape."""
        check_labels(labels, self.config, (pixel_values.shape[0],))


@keras.saving.register_keras_serializable("d2v")
class TFData2VecVisionForSemanticSegmentation(VisionModel):
    """A class for each pixel: UPerNet over four layers' outputs, with a second head that helps in training.

    `config.out_indices` counts as in `d2v.Data2VecVisionForSemanticSegmentation`: 1 is the embeddings.

    Args:
        config: sizes and options; `num_labels` or `id2label` say the classes.
        **options: of `keras.Model`: name, dtype.
    """

    def __init__(self, config: Data2VecVisionConfig, add_pooling_layer: bool = False, **options):
        known = range(1, config.num_hidden_layers + 2)
        if len(set(config.out_indices)) != 4 or not set(config.out_indices) <= set(known):
            raise InputError(f"out_indices should be four different ones of 1 to {known[-1]}, not {config.out_indices}")
        super().__init__(config, add_pooling_layer, **options)

    def make_layers(self) -> None:
        """Make and build the layers."""
        super().make_layers()
        norm = BatchNorm(self.config, self.config.hidden_size, name="fpn1-1", dtype=self.dtype_policy)
        norm.build()
        self.fpn1 = [double(self, "fpn1-0"), norm, double(self, "fpn1-3")]
        self.fpn2 = double(self, "fpn2-0")
        self.pool = layers.MaxPooling2D(2, data_format="channels_last", dtype=self.dtype_policy)
        self.decode_head = UperHead(self.config, name="decode_head", dtype=self.dtype_policy)
        self.decode_head.build()
        self.auxiliary_head = None
        if self.config.use_auxiliary_head:
            self.auxiliary_head = FCNHead(self.config, name="auxiliary_head", dtype=self.dtype_policy)
            self.auxiliary_head.build()

    def call(
        self,
        pixel_values=None,
        head_mask=None,
        labels=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        training=False,
    ):
        """Logits over the classes on a grid four times as fine as the patches', and the mean loss.

        Args:
            pixel_values, head_mask, output_attentions, output_hidden_states, return_dict, training: as in
                `TFData2VecVisionModel.call`; at least two rows and two columns of patches.
            labels: (B, height, width) class numbers, `config.semantic_loss_ignore_index` where nothing counts.

        Raises:
            InputError: labels are no classes or of the wrong shape, the image is a single row or column of patches, or
                another input is wrong.
        """
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        options |= {"return_dict": return_dict, "labels": labels}
        inputs = self.read({"pixel_values": pixel_values, "head_mask": head_mask} | options)
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        _, _, states, attentions = self.data2vec_vision(pixel_values, head_mask=inputs["head_mask"], training=training)
        grid = self.config.grid(tuple(pixel_values.shape[2:]))
        maps = [
            ops.reshape(states[index - 1][:, 1:], (-1, *grid, self.config.hidden_size))
            for index in sorted(self.config.out_indices)
        ]
        first, norm, second = self.fpn1
        finest = second(keras.activations.gelu(norm(first(maps[0]), training=training), approximate=False))
        maps = [finest, self.fpn2(maps[1]), maps[2], self.pool(maps[3])]
        logits, auxiliary, loss = self.decode_head(maps, training=training), None, None
        if self.auxiliary_head is not None and (training or labels is not None):
            auxiliary = self.auxiliary_head(maps[2], training=training)
        if labels is not None:
            loss = pixels(logits, auxiliary, labels, self.config)
        auxiliary = None if auxiliary is None else channels_first(auxiliary)
        logits = channels_first(logits)
        return self.answer(inputs, states, attentions, loss=loss, logits=logits, auxiliary_logits=auxiliary)

    def read(self, values: dict[str, Any]) -> dict[str, Any]:
        """As the other models', and of two rows and columns of patches at least."""
        values = super().read(values)
        rows, columns = self.config.grid(tuple(values["pixel_values"].shape[2:]))
        if min(rows, columns) < 2:
            raise InputError(f"segmentation takes at least 2 x 2 patches; the images have {rows} x {columns}")
        return values

    def check_labels(self, labels, pixel_values) -> None:
        """Raise InputError unless labels are (B, height, width), classes or ignored."""
        if self.config.num_labels < 2:
            raise InputError(f"segmentation takes at least 2 classes to learn; num_labels is {self.config.num_labels}")
        check_labels(labels, self.config, (pixel_values.shape[0], None, None))

    def scores(self, output, labels):
        """Logits (B, height, width, C) of the labels' size."""
        logits = channels_last(output["logits"])
        return logits if labels is None else resample(logits, tuple(labels.shape[1:3]))
