"""Data2Vec for speech, language and images: one Transformer, and the parts that fine-tuning recipes are made of.

The classes are imported when they are first asked for: what needs none of them, as `d2v.keras`, runs without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2v.models.audio import Data2VecAudioConfig, Data2VecAudioModel
    from d2v.models.audio_heads import (
        Data2VecAudioForAudioFrameClassification,
        Data2VecAudioForCTC,
        Data2VecAudioForSequenceClassification,
    )
    from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
    from d2v.models.text_heads import (
        Data2VecTextForCausalLM,
        Data2VecTextForMaskedLM,
        Data2VecTextForMultipleChoice,
        Data2VecTextForQuestionAnswering,
        Data2VecTextForSequenceClassification,
        Data2VecTextForTokenClassification,
    )
    from d2v.models.vision import Data2VecVisionConfig, Data2VecVisionModel
    from d2v.models.vision_heads import Data2VecVisionForImageClassification, Data2VecVisionForSemanticSegmentation
    from d2v.models.xvector import Data2VecAudioForXVector

__all__ = [
    "Data2VecAudioConfig",
    "Data2VecAudioForAudioFrameClassification",
    "Data2VecAudioForCTC",
    "Data2VecAudioForSequenceClassification",
    "Data2VecAudioForXVector",
    "Data2VecAudioModel",
    "Data2VecTextConfig",
    "Data2VecTextForCausalLM",
    "Data2VecTextForMaskedLM",
    "Data2VecTextForMultipleChoice",
    "Data2VecTextForQuestionAnswering",
    "Data2VecTextForSequenceClassification",
    "Data2VecTextForTokenClassification",
    "Data2VecTextModel",
    "Data2VecVisionConfig",
    "Data2VecVisionForImageClassification",
    "Data2VecVisionForSemanticSegmentation",
    "Data2VecVisionModel",
]
__version__ = "0.1.0"

MODULES = ("audio", "audio_heads", "text", "text_heads", "vision", "vision_heads", "xvector")


def __getattr__(name: str) -> Any:
    """A class of `__all__`, from the module that it stands in."""
    if name in __all__:
        for module in (import_module(f"d2v.models.{name}") for name in MODULES):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module 'd2v' has no attribute {name!r}")
