"""Question answering: `Data2VecTextForQuestionAnswering`, exact match and F1 of SQuAD 1.1 and 2.0.

    accelerate launch recipes/question_answering.py
    accelerate launch recipes/question_answering.py --config recipes/configs/question_answering/squad_v2.yaml
    accelerate launch recipes/question_answering.py --mode evaluate --model runs/question_answering/best
    accelerate launch recipes/question_answering.py --mode predict --model runs/question_answering/best \
        --data.path asked.jsonl --run.out predicted

Without a data option it fine-tunes d2v's small model on questions about Python's docstrings, in minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from d2v import losses
from d2v.cli import run
from d2v.config import Recipe, Run
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.question_answering import QuestionData, check_questions, question_rows, read_questions, text_tokens
from d2v.data.text import all_texts, token_batch, tokenizer_for
from d2v.decode.question_answering import best_spans, join_windows, write_answers
from d2v.demo.text import docs_questions
from d2v.metrics.question_answering import question_answering_metrics
from d2v.metrics.statistics import question_statistics
from d2v.models.text_heads import Data2VecTextForQuestionAnswering
from d2v.training import About, build, finish, fit, predict, predict_test, start


@dataclass
class Config(Recipe):
    """Question answering."""

    data: QuestionData = field(default_factory=QuestionData)
    run: Run = field(default_factory=lambda: Run(out="runs/question_answering"))


def collate(rows: list[dict], *, tokenizer) -> dict[str, Any]:
    """A batch of windows, each with the first and last token of its answer if answers are known."""
    batch = token_batch(tokenizer, [row["ids"] for row in rows])
    if "answer" in rows[0]:
        batch["labels"] = torch.tensor([row["answer"] for row in rows])  # (B, 2)
    return batch | {"text_mask": pad_sequence([text_tokens(row) for row in rows], batch_first=True)}  # (B, T)


def main(config: Config) -> dict[str, Any]:
    """Fine-tune a question answerer, evaluate one or answer with one; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: questions, texts and answers
    columns = {"question": data.question_column, "context": data.context_column}
    splits = load(job, docs_questions, inputs=columns, targets={"answers": data.answers_column}, reader=read_questions)
    splits = check_questions(job, splits)
    texts = list(columns.values())
    tokenizer = tokenizer_for(job, lambda: dict.fromkeys(all_texts(splits["train"], texts)))

    # Model: the first and the last token of an answer
    model = build(job, Data2VecTextForQuestionAnswering, tokenizer=tokenizer)
    longest = min(data.max_length, model.config.max_tokens)
    rows = {name: question_rows(job, split, tokenizer, longest) for name, split in splits.items()}
    threshold = data.no_answer_threshold if data.unanswerable else None
    collate_rows = partial(collate, tokenizer=tokenizer)

    # Loss: cross-entropy of the answer's first and last token
    def loss_fn(model, batch):
        output = model(batch["input_ids"], batch["attention_mask"])
        starts, count = losses.cross_entropy(output.start_logits, batch["labels"][:, 0])
        ends, _ = losses.cross_entropy(output.end_logits, batch["labels"][:, 1])
        return (starts + ends) / 2, count

    # Prediction: the best spans over all windows of a text
    def predict_fn(model, batch):
        output = model(batch["input_ids"], batch["attention_mask"])
        logits = output.start_logits, output.end_logits  # (B, T) each
        no_answer = logits[0][:, 0].float() + logits[1][:, 0].float()  # both at <s>
        spans = best_spans(*logits, batch["text_mask"], data.n_best, data.max_answer_length)
        return list(zip(no_answer.tolist(), spans, strict=True))

    def predict_split(model, split):
        windows = predict(job, model, eval_loader(job, rows[split], collate_rows), predict_fn)
        return join_windows(rows[split], windows, data.n_best, threshold)

    # Metrics: SQuAD's exact match and F1
    def compute_metrics(predictions, split="validation"):
        return question_answering_metrics(*rows[split].compare(predictions), threshold)

    def evaluate(model):
        return compute_metrics(predict_split(model, "validation"))

    if job.training:
        batches = train_loader(job, rows["train"], collate_rows)
        model = fit(job, model, batches, loss_fn, evaluate, keep=[tokenizer], metric="f1")

    # Test: answers, in the files that SQuAD's scripts read, on a split that was not used to choose the checkpoint
    split, predictions, seconds = predict_test(rows, predict_split, model)
    metrics = compute_metrics(predictions, split) if job.labelled else {}
    statistics = question_statistics(*rows[split].compare(predictions), threshold) if job.labelled else None
    records = rows[split].records(predictions)
    if job.is_main:
        write_answers(job.out, records)
    records = [{key: value for key, value in record.items() if key != "nbest"} for record in records]
    notes = {"no_answer_threshold": threshold} if data.unanswerable else None
    about: About = {"metric": "f1", "task": "question-answering", "demo": "Python's documentation"}
    return finish(job, metrics, records, statistics, split=split, seconds=seconds, notes=notes, **about)


if __name__ == "__main__":
    run(main, Config)
