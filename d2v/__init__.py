"""Data2Vec for speech, language and images: one Transformer, and the parts that fine-tuning recipes are made of."""

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
