"""The model that a run starts from: a checkpoint's or a new one, frozen or with adapters as the options say."""

from collections.abc import Mapping
from typing import Any, TypeVar

from d2v.config import Job
from d2v.errors import InputError
from d2v.lora import add_lora
from d2v.models.base import PreTrainedModel
from d2v.models.text import Data2VecTextConfig
from d2v.processors.text import Tokenizer

Model = TypeVar("Model", bound=PreTrainedModel)


def build(
    job: Job,
    cls: type[Model],
    fine_tuning: Mapping[str, Any] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    always: Mapping[str, Any] | None = None,
    **task: Any,
) -> Model:
    """The model that a run starts from.

    A checkpoint keeps its configuration in evaluation and prediction. In training `fine_tuning`, the user's `arch` and
    the task's fields change it, in this order. The fields in `always` hold whatever the mode.

    Args:
        job: from `d2v.training.job.start`.
        cls: its class.
        fine_tuning: fields of the configuration that differ in fine-tuning, such as dropout.
        tokenizer: of a text model, whose vocabulary and special tokens a new model gets.
        always: fields without which the model would compute something else, such as `is_decoder`.
        **task: fields that the task decides, such as `id2label`.

    Raises:
        InputError: the model cannot be loaded, its tokenizer does not fit, or the options exclude each other.
    """
    config = job.config
    changes = {**(fine_tuning or {}), **config.arch, **task} if job.training else {}
    changes |= always or {}
    if config.model:
        model = cls.from_pretrained(config.model, **changes)
    else:
        changes = changes if tokenizer is None else text_sizes(job, tokenizer, changes)
        model = cls(cls.config_class.from_dict({}, **changes))
    settings = model.config
    if tokenizer and isinstance(settings, Data2VecTextConfig) and len(tokenizer) > settings.vocab_size:
        tokens = f"{len(tokenizer)} tokens, its model {settings.vocab_size}"
        raise InputError(f"{config.model}: the tokenizer has {tokens}; they do not belong together")
    if job.training and config.lora.rank and config.freeze == "encoder":
        raise InputError("--freeze encoder and --lora.rank exclude each other: adapters are trained inside the encoder")
    if job.training and config.lora.rank:
        add_lora(model, **vars(config.lora))
    elif config.freeze == "encoder":
        model.freeze_base_model()
    elif config.freeze == "feature_encoder":
        base = model.base_model
        (base.feature_extractor if hasattr(base, "feature_extractor") else base.embeddings).requires_grad_(False)
    return model


def text_sizes(job: Job, tokenizer: Tokenizer, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a new text model, with room for its tokenizer and for `data.max_length` tokens."""
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    # fairseq numbers positions from pad_token_id + 1 (fairseq/utils.py, make_positions).
    room = {"max_position_embeddings": job.config.data.max_length + tokenizer.pad_token_id + 1}
    return {**room, **changes, "vocab_size": len(tokenizer), **tokens}
