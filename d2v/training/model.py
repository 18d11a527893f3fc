"""The model that a run starts from: a checkpoint or a new one, frozen or with adapters as the options say."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from d2v.config import Job
from d2v.data.facts import note, shorten
from d2v.data.labels import MODEL_TYPES, checkpoint_labels, match_classes
from d2v.errors import InputError
from d2v.hub import fetch_file, local_folder, split_revision
from d2v.lora import NAME, add_lora
from d2v.models.base import PreTrainedModel
from d2v.models.text import Data2VecTextConfig
from d2v.pretrained import load_weights
from d2v.processors.ctc import CTCTokenizer
from d2v.processors.text import Tokenizer

Model = TypeVar("Model", bound=PreTrainedModel)
# Weights that only training uses: the mask embedding, the speakers' loss, an auxiliary head.
TRAINING_ONLY = re.compile(r"(.*\.)?(masked_spec_embed|mask_token)|(objective|auxiliary_head)\..*")


def build(
    job: Job,
    cls: type[Model],
    fine_tuning: Mapping[str, Any] | None = None,
    *,
    tokenizer: Tokenizer | CTCTokenizer | None = None,
    always: Mapping[str, Any] | None = None,
    **task: Any,
) -> Model:
    """The model that a run starts from.

    A checkpoint keeps its configuration in evaluation and prediction. In training `fine_tuning`, the user's `arch` and
    the task's fields change it, in this order. The fields in `always` apply in every mode. A checkpoint's head keeps
    the rows of the classes or characters that the new head has too, whatever their order.

    Args:
        job: from `d2v.training.job.start`.
        cls: its class.
        fine_tuning: fields of the configuration that differ in fine-tuning, such as dropout.
        tokenizer: for a text model, which gets its vocabulary and special tokens if new; or for a CTC model, whose
            head gets a row for each token.
        always: fields without which the model would compute something else, such as `is_decoder`.
        **task: fields that the task decides, such as `id2label`.

    Raises:
        InputError: the model cannot be loaded, has no head to evaluate or to predict with, its tokenizer does not fit,
            or the options contradict each other.
    """
    config = job.config
    changes = {**(fine_tuning or {}), **config.arch, **task} if job.training else {}
    if job.training and isinstance(tokenizer, CTCTokenizer):
        changes |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    changes |= always or {}
    by_option = "lora.rank" if config.lora.rank else f"freeze {config.freeze}"
    frozen = by_option if job.training and by_option != "freeze nothing" else None
    if config.model:
        model = load_pretrained(job, cls, changes, tokenizer)
    else:
        changes = new_text_config(job, tokenizer, changes) if isinstance(tokenizer, Tokenizer) else changes
        model = cls(cls.config_class.from_dict({}, **changes))
        if job.config.data.path is not None:
            note(job, "random weights", "model: new, with random weights; --model starts from a checkpoint")
        if frozen:
            note(job, "random weights frozen", f"model: new, and what --{frozen} does not train stays random")
    settings = model.config
    for name, value in config.arch.items():
        own = getattr(settings, name, "no such field")
        if own != (tuple(value) if isinstance(value, list) and isinstance(own, tuple) else value):
            why = "has no effect: by the data it is" if job.training else "is for training; the model has"
            note(job, "arch unused", f"arch.{name} {value} {why} {own}", option=f"arch.{name}")
    if job.training and config.model and isinstance(tokenizer, Tokenizer) and config.data.add_tokens:
        start_tokens(model, tokenizer, len(Tokenizer.from_pretrained(config.model)))
        if frozen:
            line = f"tokens added: they stay the mean of the others, since with --{frozen} embeddings are not trained"
            note(job, "tokens not trained", line, tokens=config.data.add_tokens)
    if tokenizer and isinstance(settings, Data2VecTextConfig) and len(tokenizer) > settings.vocab_size:
        tokens = f"{len(tokenizer)} tokens, its model {settings.vocab_size}"
        raise InputError(f"{config.model}: the tokenizer has {tokens}; they do not belong together")
    if job.training and config.lora.rank and config.freeze == "encoder":
        raise InputError("--freeze encoder and --lora.rank exclude each other: adapters are trained inside the encoder")
    if job.training and config.lora.rank:
        add_lora(model, **vars(config.lora))
        own = (
            (name, each)
            for name, each in model.named_parameters()
            if not name.startswith(f"{model.base_model_prefix}.")
        )
        if left := [name for name, each in own if not each.requires_grad]:
            note(job, "not trained", f"{', '.join(left)}: not trained with --lora.rank, whose files hold layers alone")
        adapter, folder = model.peft_config[NAME], local_folder(config.model) if config.model else None
        source, revision = (str(folder), None) if folder else split_revision(config.model or "")
        adapter.base_model_name_or_path, adapter.revision = source or None, revision
    elif config.freeze == "encoder":
        model.freeze_base_model()
    elif config.freeze == "feature_encoder":
        base = model.base_model
        (base.feature_extractor if hasattr(base, "feature_extractor") else base.embeddings).requires_grad_(False)
    return model


def load_pretrained(
    job: Job, cls: type[Model], changes: Mapping[str, Any], tokenizer: Tokenizer | CTCTokenizer | None
) -> Model:
    """The run's checkpoint as a model of this class, in evaluation mode; new weights are noted.

    Args:
        job: from `d2v.training.job.start`.
        cls: the class.
        changes: fields of its configuration to change.
        tokenizer: of a CTC model, whose head has a row for each token.

    Raises:
        InputError: it cannot be loaded, or lacks weights in evaluation or prediction.
    """
    source = job.config.model
    model = cls(cls.config_class.from_pretrained(source, **changes))
    if not job.training:
        report = load_weights(model, source)
        if needed := [name for name in sorted(report.missing) if not TRAINING_ONLY.fullmatch(name)]:
            raise InputError(
                f"{source}: lacks {shorten(needed, 4)}, without which it cannot {job.config.mode}; train it first"
            )
        if other := [each for each in sorted(report.resized) if not TRAINING_ONLY.fullmatch(each.partition(" ")[0])]:
            raise InputError(f"{source}: its weights have other shapes than its config.json says: {shorten(other, 4)}")
    else:
        names, old, pairs = head_rows(job, model, tokenizer)
        report = load_weights(model, source, row_axes(model, tokenizer), pairs)
        kept = [i for i in range(len(names)) if pairs.get(i, report.rows) < report.rows]
        if report.rows and [pairs.get(i) for i in range(max(report.rows, len(names)))] != list(range(report.rows)):
            new = shorten(name for i, name in enumerate(names) if i not in kept)
            gone = shorten(name for i, name in enumerate(old[: report.rows]) if i not in pairs.values())
            line = f"head: {len(kept)} of {len(names)} rows are the checkpoint's, by name"
            line += (f"; new: {new}" if new else "") + (f"; left out: {gone}" if gone else "")
            note(job, "head", line, kept=len(kept), of=len(names))
    for line in filter(None, str(report).splitlines()):
        note(job, "weights", line)
    return model.eval()


def head_rows(
    job: Job, model: PreTrainedModel, tokenizer: Tokenizer | CTCTokenizer | None
) -> tuple[list[str], list[str], dict[int, int]]:
    """The names of the new head's rows (classes or characters), of the checkpoint's, and the pairs that are the same.

    Args:
        job: its data may have `match`: a checkpoint's unnamed classes may be the data's in order.
        model: the new one.
        tokenizer: of a CTC model.
    """
    source = job.config.model
    if isinstance(tokenizer, CTCTokenizer):
        old = CTCTokenizer.from_pretrained(source).tokens if fetch_file(source, "vocab.json") else []
        new = tokenizer.tokens
        return new, old, {i: old.index(token) for i, token in enumerate(new) if token in old}
    before, new = checkpoint_labels(source), list(model.config.id2label.values())
    if (before.problem_type == "regression") != (model.config.problem_type == MODEL_TYPES["regression"]):
        return new, before.names, {}
    by_order = before.unnamed and getattr(job.config.data, "match", "name") == "order"
    if by_order and len(new) != len(before.names):
        return new, before.names, {}
    known = match_classes("order" if by_order else "name", before.names, new)
    return new, before.names, {i: known[name] for i, name in enumerate(new) if name in known}


def row_axes(model: PreTrainedModel, tokenizer: Tokenizer | CTCTokenizer | None) -> dict[str, int]:
    """The weights that grow with the number of classes, or with CTC of tokens, and the dimension that grows."""
    settings = model.config
    if isinstance(tokenizer, CTCTokenizer):
        longer = replace(settings, vocab_size=len(tokenizer) + 1)  # type: ignore[call-arg]
    else:
        longer = replace(settings, id2label={**settings.id2label, settings.num_labels: ""})
    with torch.device("meta"):  # only shapes
        others = {key: value.shape for key, value in type(model)(longer).state_dict().items()}
    pairs = ((key, zip(value.shape, others[key], strict=True)) for key, value in model.state_dict().items())
    return {key: axis for key, sizes in pairs for axis, (size, other) in enumerate(sizes) if size != other}


def start_tokens(model: Any, tokenizer: Tokenizer, known: int) -> None:
    """Give a tokenizer's tokens after the first `known` the mean embedding of these, in new rows if needed."""
    if len(tokenizer) > model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    head, tables = getattr(model, "lm_head", None), [model.base_model.embeddings.word_embeddings.weight]
    if head is not None:
        tables += [head.bias] if head.decoder is None else [head.decoder.weight, head.decoder.bias]
    with torch.no_grad():
        for table in tables:
            table[known : len(tokenizer)] = table[:known].mean(dim=0)


def new_text_config(job: Job, tokenizer: Tokenizer, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a new text model, with room for its tokenizer and for `data.max_length` tokens."""
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    # fairseq numbers positions from pad_token_id + 1 (fairseq/utils.py, make_positions).
    room = {"max_position_embeddings": job.config.data.max_length + tokenizer.pad_token_id + 1}
    return {**room, **changes, "vocab_size": len(tokenizer), **tokens}
