"""Answers to questions about a text: `Data2VecTextForQuestionAnswering`, exact match and F1 of SQuAD 1.1 and 2.0.

    accelerate launch recipes/question_answering.py
    accelerate launch recipes/question_answering.py --config recipes/configs/question_answering/squad_v2.yaml
    accelerate launch recipes/question_answering.py --mode evaluate --model runs/squad/best --run.out runs/again
    accelerate launch recipes/question_answering.py --mode predict --model runs/squad/best --data.path asked.jsonl

Without a data option it learns to read Python's docstrings, in a few minutes on a CPU.
"""

import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from d2v import losses
from d2v.config import Lora, Optim, Run, at_least, check_mode, run
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.question_answering import answer_tokens, check_questions, question_windows, read_questions, text_tokens
from d2v.data.text import TextData, all_texts, tokenizer_for
from d2v.decode.question_answering import answer, best_spans
from d2v.demo.text import docs_questions
from d2v.lora import save_adapted
from d2v.metrics.question_answering import squad, squad_v2
from d2v.models.text_heads import Data2VecTextForQuestionAnswering
from d2v.pretrained import write_json
from d2v.training.build import text_model
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class QuestionData(TextData):
    """The data; without a path the embedded demo.

    Attributes:
        question_column: questions.
        context_column: the texts that they are about.
        answers_column: `text` and `answer_start`, lists of the right answers and of their first characters.
        unanswerable: there are questions without an answer, as in SQuAD 2.0.
        no_answer_threshold: an answer is given unless the probability that there is none is above it.
        max_length: tokens of a question and a window of its text; longer texts take several.
        stride: tokens that a window shares with the one before it.
        max_answer_length: tokens of an answer.
        n_best: answers to list for each question.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    unanswerable: bool = False
    no_answer_threshold: float = 0.5
    max_length: int = 384
    stride: int = 128
    max_answer_length: int = 30
    n_best: int = 20

    def __post_init__(self):
        super().__post_init__()
        at_least(1, "data", self, ("max_answer_length", "n_best"))


@dataclass
class Config:
    """Question answering.

    Attributes:
        mode: train and score, score a model, or answer.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecTextConfig` that are to differ, such as `--arch.hidden_dropout_prob 0.0`.
        lora: train low-rank adapters instead of all weights.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    lora: Lora = field(default_factory=Lora)
    data: QuestionData = field(default_factory=QuestionData)
    optim: Optim = field(default_factory=Optim)
    run: Run = field(default_factory=lambda: Run(out="runs/question_answering"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    texts = {"question": data.question_column, "context": data.context_column}
    columns = texts | ({"answers": data.answers_column} if labelled else {})
    splits = load(config, docs_questions, columns, accelerator, read_questions)
    check_questions(splits, columns, unanswerable=data.unanswerable)
    names = {role: row_names(split) for role, split in splits.items()}

    # Tokenizer
    tokenizer = tokenizer_for(
        config.model, lambda: dict.fromkeys(all_texts(splits["train"], list(texts.values()))), data.vocab_size
    )

    # Model
    model = text_model(Data2VecTextForQuestionAnswering, config, tokenizer, {})
    longest = min(data.max_length, model.config.max_tokens)
    threshold = data.no_answer_threshold if data.unanswerable else None

    # Rows: windows of the texts
    windows = {}
    for role, split in splits.items():
        questions, contexts = split[data.question_column][:], split[data.context_column][:]
        windows[role] = question_windows(questions, contexts, tokenizer, longest, data.stride, role)
    if training:
        answers = splits["train"][data.answers_column][:]
        for window in windows["train"]:
            found = answers[window["row"]]  # of several the first is learnt, as everywhere
            right = answer_tokens(window, found["text"][0], found["answer_start"][0]) if found["text"] else (0, 0)
            window["answer"] = torch.tensor(right)

    def collate(rows: list[dict]) -> dict[str, Any]:
        batch = tokenizer.pad([row["ids"] for row in rows]) | {"size": sum(len(row["ids"]) for row in rows)}
        if "answer" in rows[0]:  # rows of train
            return batch | {"answers": torch.stack([row["answer"] for row in rows])}  # (B, 2)
        return batch | {"there": pad_sequence([text_tokens(row) for row in rows], batch_first=True)}  # (B, T)

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        output = model(batch["input_ids"], batch["attention_mask"])
        begins, count = losses.cross_entropy(output.start_logits, batch["answers"][:, 0])
        ends, _ = losses.cross_entropy(output.end_logits, batch["answers"][:, 1])
        return (begins + ends) / 2, count

    def spans(model, batch) -> list[tuple[float, list]]:
        output = model(batch["input_ids"], batch["attention_mask"])
        none = output.start_logits[:, 0].float() + output.end_logits[:, 0].float()  # both at <s>
        logits = output.start_logits, output.end_logits
        found = best_spans(*logits, batch["there"], data.n_best, data.max_answer_length)
        return list(zip(none.tolist(), found, strict=True))

    def read(model, role: str) -> list[dict[str, Any]]:
        lengths = [len(window["ids"]) for window in windows[role]]
        batches = eval_loader(windows[role], lengths, collate, data, data.batch_tokens, accelerator)
        pairs = zip(windows[role], predict(model, batches, spans, accelerator), strict=True)
        contexts = splits[role][data.context_column]
        return [
            answer(contexts[row], list(found), data.n_best, threshold)
            for row, found in groupby(pairs, lambda pair: pair[0]["row"])
        ]

    def rates(found: list[dict[str, Any]], role: str) -> dict[str, float]:
        references = [answers["text"] for answers in splits[role][data.answers_column]]
        if threshold is None:
            return squad(references, [row["answer"] for row in found])
        return squad_v2(references, *([row[key] for row in found] for key in ("best", "no_answer")), threshold)

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        tokenizer.save_pretrained(folder)

    if training:
        lengths = [len(window["ids"]) for window in windows["train"]]
        options = (collate, data, data.batch_tokens, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(windows["train"], lengths, *options),
            loss_fn,
            lambda model: rates(read(model, "validation"), "validation"),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="f1",
            higher_is_better=True,
            unit="tokens",
        )
        model = Data2VecTextForQuestionAnswering.from_pretrained(out / "best", verbose=False)

    # The end: the best model's answers to questions that chose nothing, as SQuAD's official scripts read them
    role, begun = "test" if "test" in splits else "validation", time.perf_counter()
    found = read(model, role)
    seconds = time.perf_counter() - begun
    metrics = rates(found, role) if labelled else {}
    files = {"nbest_predictions": [row.pop("nbest") for row in found], "predictions": [row["answer"] for row in found]}
    if data.unanswerable:
        files["na_prob"] = [row["no_answer"] for row in found]
    if accelerator.is_main_process:
        for name, values in files.items():
            write_json(out / f"{name}.json", dict(zip(names[role], values, strict=True)))
    predictions = [
        {"id": name, "question": question} | row
        for name, question, row in zip(names[role], splits[role][data.question_column], found, strict=True)
    ]
    if labelled:
        for row, answers in zip(predictions, splits[role][data.answers_column], strict=True):
            row["reference"] = answers["text"]
    return finish(
        out,
        metrics,
        predictions,
        split=role,
        seconds=seconds,
        trained="f1" if training else None,
        recipe="question_answering",
        task="question-answering",
        data=data.path or "Python's documentation",
        accelerator=accelerator,
        notes={"no_answer_threshold": threshold} if data.unanswerable else None,
    )


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/question_answering/demo.yaml")
