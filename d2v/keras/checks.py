"""What the Keras models refuse, in one line each: what compiled code cannot say."""

import keras

from d2v.errors import InputError
from d2v.models.configuration import Data2VecVisionConfig


def check_pixels(config: Data2VecVisionConfig, pixel_values) -> None:
    """Raise InputError unless `pixel_values` are float images, channels first, of a patch at least."""
    if pixel_values is None or not hasattr(pixel_values, "shape"):
        raise InputError(f"pixel_values should be a float tensor or array, not {type(pixel_values).__name__}")
    shape, channels = tuple(pixel_values.shape), config.num_channels
    if len(shape) != 4 or shape[1] not in (channels, None):
        last = " (channels last; ops.transpose(x, (0, 3, 1, 2)) puts them first)" if shape[-1:] == (channels,) else ""
        raise InputError(f"pixel_values have shape {shape}{last}; should be (B, {channels}, height, width)")
    dtype = keras.backend.standardize_dtype(pixel_values.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise InputError(f"pixel_values are {dtype}; should be floating point, scaled and normalised")
    if None in shape[2:]:
        raise InputError(
            f"pixel_values have shape {shape} when the graph is made; height and width have to be known: "
            "set the data set's shapes, or compile with run_eagerly=True"
        )
    if 0 in config.grid(shape[2:]):
        raise InputError(f"images of {shape[2]} x {shape[3]} pixels are smaller than patch_size {config.patch_size}")


def check_mask(config: Data2VecVisionConfig, pixel_values, bool_masked_pos) -> None:
    """Raise InputError unless `bool_masked_pos` fits the images and the model."""
    if bool_masked_pos is None:
        return
    if not config.use_mask_token:
        raise InputError("bool_masked_pos is for a model with a mask token; set use_mask_token")
    rows, columns = config.grid(tuple(pixel_values.shape[2:]))
    shape = tuple(bool_masked_pos.shape)
    if len(shape) != 2 or shape[1] not in (rows * columns, None):
        raise InputError(f"bool_masked_pos has shape {shape}; should be {(pixel_values.shape[0], rows * columns)}")


def check_head_mask(config: Data2VecVisionConfig, head_mask) -> None:
    """Raise InputError unless `head_mask` has a factor for each head, of all layers or of each."""
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    if head_mask is not None and tuple(head_mask.shape) not in ((heads,), (layers, heads)):
        raise InputError(f"head_mask has shape {tuple(head_mask.shape)}; should be {(heads,)} or {(layers, heads)}")
