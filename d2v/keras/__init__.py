"""data2vec-vision on Keras 3, which runs on TensorFlow, JAX or PyTorch: the successor of Hugging Face's TF classes.

The environment variable KERAS_BACKEND chooses the backend before this is imported. TensorFlow and PyTorch should not be
imported in one process: on some machines the interpreter crashes. Nothing here imports PyTorch on the others.
"""

try:
    import keras
except ImportError as error:
    if error.name in (None, "keras"):
        message = 'd2v.keras needs Keras 3: pip install -e ".[keras]" in the clone of d2v'
        message += " and one of tensorflow, jax and torch"
    else:
        message = f"Keras cannot import {error.name}: install it, or set KERAS_BACKEND to tensorflow, jax or torch"
    raise ImportError(message) from None
if int(keras.__version__.split(".")[0]) < 3:
    raise ImportError(
        f'd2v.keras needs Keras 3, and {keras.__version__} is installed: pip install -e ".[keras]" in the clone of d2v'
    )

from d2v.keras.optim import build_optimizer
from d2v.keras.vision import (
    TFData2VecVisionForImageClassification,
    TFData2VecVisionForSemanticSegmentation,
    TFData2VecVisionModel,
)
from d2v.models.configuration import Data2VecVisionConfig

__all__ = [
    "Data2VecVisionConfig",
    "TFData2VecVisionForImageClassification",
    "TFData2VecVisionForSemanticSegmentation",
    "TFData2VecVisionModel",
    "build_optimizer",
]
