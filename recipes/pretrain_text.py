"""Pretraining on text without labels: `Data2VecTextModel`, by predicting a teacher's view of masked tokens.

    accelerate launch recipes/pretrain_text.py
    accelerate launch recipes/pretrain_text.py --config recipes/configs/pretrain_text/base.yaml
    accelerate launch recipes/pretrain_text.py --model facebook/data2vec-text-base --data.path corpus.txt

The recipes for text take its `best/` as `--model`. Without a data option it trains on Python's documentation, for a
few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Run
from d2v.data.language_modeling import pieces, text_windows, with_text
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.pretraining import MaskedTextData, masked_windows, text_masker
from d2v.data.rows import Rows
from d2v.data.streams import rows_of
from d2v.data.text import tokenizer_for
from d2v.demo.text import documentation
from d2v.models.pretraining import at_masked, begin
from d2v.models.text import Data2VecTextModel
from d2v.training import build, start
from d2v.training.pretraining import finish_pretraining, pretrain
from d2v.training.probe import build_probe
from d2v.training.teaching import Pretraining, Teaching, student_and_teacher


@dataclass
class Config(Pretraining):
    """Pretraining on text."""

    teacher: Teaching = field(
        default_factory=lambda: Teaching(layers=10, layer_norm="layer", beta=4.0, reduction="sum", head_layers=2)
    )
    data: MaskedTextData = field(default_factory=MaskedTextData)
    optim: Optim = field(
        default_factory=lambda: Optim(lr=2e-4, eps=1e-6, weight_decay=0.01, clip=5.0, schedule="cosine")
    )
    run: Run = field(default_factory=lambda: Run(out="runs/pretrain_text"))


def main(config: Config) -> dict[str, Any]:
    """Pretrain a text model; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: running text and its tokens
    splits = load(job, documentation, inputs={"text": data.text_column})
    texts = {name: pieces(job, split) for name, split in splits.items()}
    tokenizer = tokenizer_for(job, lambda: texts["train"])
    mask = text_masker(tokenizer, data, config.economy.views)

    # Model: a student, given masked tokens, and a teacher, its moving average, given all tokens
    base = build(job, Data2VecTextModel, tokenizer=tokenizer)
    base.pooler = None  # it would not be trained
    if not config.model:
        begin(base)
    student, teacher = student_and_teacher(job, base, auxiliary=base.config.vocab_size)
    rows, collates, size = {}, {}, min(data.max_length, base.config.max_tokens)
    for name in ("train", "validation"):
        rows[name], stream = text_windows(job, splits[name], texts[name], tokenizer, size, special=2)
        collates[name] = partial(
            masked_windows, tokenizer=tokenizer, stream=stream, mask=mask, views=config.economy.views
        )

    # Loss: of the teacher's targets, see `pretrain`, and of the tokens if wanted
    def auxiliary_loss(outputs, batch):
        return losses.cross_entropy(outputs, at_masked(batch["input_ids"], batch["masked"]))[0]

    batches = train_loader(job, rows["train"], collates["train"])
    held_out = eval_loader(job, rows["validation"], collates["validation"])

    def tokens(rows):
        return tokenizer.pad([each.ids for each in tokenizer([row[data.text_column] for row in rows], max_length=size)])

    def whole(split):  # texts, not the training windows
        kept = with_text(job, split, data.text_column)
        return Rows(kept, kept.ids(), [1] * len(kept))

    probed = {name: rows_of(split, whole) for name, split in splits.items()} if config.probe.column else {}
    probe = build_probe(job, probed, tokens)
    metrics = pretrain(job, student, teacher, batches, held_out, auxiliary_loss, keep=[tokenizer], probe=probe)
    return finish_pretraining(job, metrics, rows["validation"], demo="Python's documentation", then="masked_lm")


if __name__ == "__main__":
    run(main, Config)
