"""The model of a text recipe: loaded or new, with room for its texts, and with adapters if asked for."""

from typing import Any

from d2v.errors import InputError
from d2v.lora import add_lora
from d2v.models.text import Data2VecTextConfig, TextPreTrainedModel
from d2v.processors.text import Tokenizer


def text_model(
    cls: type[TextPreTrainedModel], config: Any, tokenizer: Tokenizer, changes: dict[str, Any]
) -> TextPreTrainedModel:
    """The model that a run starts from.

    Args:
        cls: its class.
        config: a recipe's configuration, with `mode`, `model`, `arch`, `lora` and `data`; `arch` and `lora` count in
            training alone.
        tokenizer: whose vocabulary a new model gets.
        changes: fields of the model's configuration that the task decides.

    Raises:
        InputError: the tokenizer has more tokens than the model.
    """
    training = config.mode == "train"
    if config.model:
        model = cls.from_pretrained(config.model, **(config.arch if training else {}) | changes)
    else:
        pad, names = tokenizer.pad_token_id, ("pad_token_id", "bos_token_id", "eos_token_id")
        room = {"max_position_embeddings": config.data.max_length + pad + 1}  # as fairseq counts positions
        own = {"vocab_size": len(tokenizer)} | {name: getattr(tokenizer, name) for name in names}
        model = cls(Data2VecTextConfig.from_dict({}, **room | config.arch | changes | own))
    if len(tokenizer) > model.config.vocab_size:
        tokens = f"{len(tokenizer)} tokens, its model {model.config.vocab_size}"
        raise InputError(f"{config.model}: the tokenizer has {tokens}; they do not belong together")
    if training and config.lora.rank:
        add_lora(model, **vars(config.lora))
    return model


def problem_type(source: str) -> str:
    """What a checkpoint tells of a text, as Hugging Face calls it: of older ones their number of outputs says it."""
    config = Data2VecTextConfig.from_pretrained(source)
    return config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
