"""Image classification: `Data2VecVisionForImageClassification`, top-1 and top-5 accuracy, and ReaL.

    accelerate launch recipes/image_classification.py
    accelerate launch recipes/image_classification.py --config recipes/configs/image_classification/imagenet_base.yaml
    accelerate launch recipes/image_classification.py --mode evaluate --model facebook/data2vec-vision-base-ft1k \
        --data.path imagenet --data.match order --data.crop_ratio 0.875 --data.real real.json --run.out runs/real
    accelerate launch recipes/image_classification.py --mode evaluate --model facebook/data2vec-vision-base-ft1k \
        --data.path imagenetv2-matched-frequency-format-val --data.match number --run.out runs/v2
    accelerate launch recipes/image_classification.py --mode predict --model runs/imagenet/best --data.path photos

Data are a hub id, parquet files, a folder with a folder of images a class (`train/<class>/x.jpg`), or WebDataset's
archives. Without a data option it learns scikit-learn's handwritten digits, in a few minutes on a CPU.
"""

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from d2v import losses
from d2v.config import Lora, Optim, Run, check_mode, run
from d2v.data.augment import Augment, augmenter, mixer
from d2v.data.image import ImageData, add_places, fit_processor, read_image, read_real
from d2v.data.labels import check_classes, distinct, label_problem, match_classes, name_classes
from d2v.data.load import load, row_names
from d2v.data.loaders import eval_loader, train_loader
from d2v.demo.images import digits
from d2v.errors import InputError
from d2v.lora import add_lora, save_adapted
from d2v.metrics.classification import plot_confusion, ranked_accuracy, real_accuracy
from d2v.models.vision import Data2VecVisionConfig, sides
from d2v.models.vision_heads import Data2VecVisionForImageClassification
from d2v.processors.image import ImageProcessor
from d2v.training.loop import fit, predict, start
from d2v.training.report import finish


@dataclass
class ClassificationData(ImageData):
    """The data; without a path the embedded demo.

    Attributes:
        label_column: class names or numbers.
        match: how labels are the classes of a model that is evaluated: by name; by number, as ImageNetV2's folders; or
            by order, the first of the data's classes being the model's first, as ImageNet's folders of WordNet ids.
        real: file of ReaL labels for the test, `real.json`.
        test_flip: score the mean of an image and its mirror image.
    """

    label_column: str = "label"
    match: Literal["name", "number", "order"] = "name"
    real: str | None = None
    test_flip: bool = False
    batch_size: int = 64


@dataclass
class Config:
    """Image classification.

    Attributes:
        mode: train and score, score a model, or write down what a model sees.
        model: hub id or folder to start from; without it a new model of the size that `arch` says.
        arch: fields of `Data2VecVisionConfig` that are to differ, such as `--arch.drop_path_rate 0.2`.
        freeze: train all, or the head alone (a linear probe).
        lora: train low-rank adapters instead of all weights.
        augment: what is done to the images of train.
    """

    mode: Literal["train", "evaluate", "predict"] = "train"
    model: str | None = None
    arch: dict[str, Any] = field(default_factory=dict)
    freeze: Literal["nothing", "encoder"] = "nothing"
    lora: Lora = field(default_factory=Lora)
    data: ClassificationData = field(default_factory=ClassificationData)
    augment: Augment = field(default_factory=Augment)
    optim: Optim = field(
        default_factory=lambda: Optim(betas=(0.9, 0.999), weight_decay=0.05, schedule="cosine", clip=0.0)
    )
    run: Run = field(default_factory=lambda: Run(out="runs/image_classification"))


def main(config: Config) -> dict[str, Any]:
    """Run the recipe; returns the content of `results.json`."""
    data, out, training, labelled = config.data, Path(config.run.out), config.mode == "train", config.mode != "predict"
    check_mode(config)
    accelerator = start(config)

    # Data
    columns = {"image": data.image_column} | ({"label": data.label_column} if labelled else {})
    splits = load(config, digits, columns, accelerator)
    if labelled:
        splits, classes = name_classes(splits, data.label_column)
    splits = {name: add_places(split, name) for name, split in splits.items()}

    # Model
    changes = {}
    if training:
        head = {"id2label": dict(enumerate(check_classes(classes, data.label_column)))}
        changes = config.arch | head | {"problem_type": "single_label_classification"}
    if config.model:
        model = Data2VecVisionForImageClassification.from_pretrained(config.model, **changes)
    else:
        model = Data2VecVisionForImageClassification(Data2VecVisionConfig.from_dict({}, **changes))
    if config.freeze == "encoder":
        model.freeze_base_model()
    elif training and config.lora.rank:
        add_lora(model, **vars(config.lora))
    size = sides(model.config.image_size)
    processor = ImageProcessor.from_pretrained(config.model) if config.model else ImageProcessor()
    processor = fit_processor(processor, size, data.crop_ratio)
    names = distinct(model.config.id2label.values())

    # Rows
    numbers = match_classes("name" if training else data.match, names, classes) if labelled else {}
    for name, split in splits.items() if labelled else ():
        for i, label in enumerate(split[data.label_column]):
            if reason := label_problem(label, numbers, data.label_column):
                raise InputError(f"{name}, row {i}: {reason}")
    augmented, mixed = augmenter(config.augment, processor, size), mixer(config.augment, len(names))

    def collate(rows: list[dict]) -> dict[str, Any]:
        images = [read_image(row[data.image_column], row["where"]) for row in rows]
        batch = {"size": len(rows)}
        if labelled:
            batch["labels"] = torch.tensor([numbers[row[data.label_column]] for row in rows])  # (B,)
        if "draw" not in rows[0]:
            return batch | processor(images)
        draws = [row["draw"] for row in rows]
        pixels = torch.stack([augmented(*pair) for pair in zip(images, draws, strict=True)])  # (B, 3, height, width)
        pixels, labels = mixed(pixels, batch["labels"], draws[0])
        return batch | {"pixel_values": pixels, "labels": labels}

    # What is learnt, and how it is judged
    def loss_fn(model, batch):
        logits = model(batch["pixel_values"]).logits  # (B, C)
        return losses.cross_entropy(logits, batch["labels"], label_smoothing=config.augment.smoothing)

    def scores(model, batch) -> list[tuple[Tensor, Tensor]]:
        views = [batch["pixel_values"]] + ([batch["pixel_values"].flip(-1)] if data.test_flip else [])
        shares = torch.stack([model(view).logits.float().softmax(-1) for view in views]).mean(0)  # (B, C)
        return list(zip(*(part.tolist() for part in shares.topk(min(5, len(names)))), strict=True))

    def look(model, name: str) -> list[dict[str, Any]]:
        split = splits[name]
        batches = eval_loader(split, [1] * len(split), collate, data, data.batch_size, accelerator)
        found = []
        for shares, classes in predict(model, batches, scores, accelerator):
            ranked = {names[i]: round(share, 6) for i, share in zip(classes, shares, strict=True)}
            found.append({"label": names[classes[0]], "scores": ranked})
        if labelled:
            references = [names[numbers[label]] for label in split[data.label_column]]
            found = [row | {"reference": label} for row, label in zip(found, references, strict=True)]
        return [{"id": image} | row for image, row in zip(row_names(split, data.image_column), found, strict=True)]

    def rates(found: list[dict[str, Any]]) -> dict[str, float]:
        return ranked_accuracy([row["reference"] for row in found], [list(row["scores"]) for row in found])

    def save(folder: Path) -> None:
        save_adapted(model, folder)
        processor.save_pretrained(folder)

    if training:
        train = splits["train"]
        options = (collate, data, data.batch_size, config.optim, config.run.seed, accelerator)
        fit(
            model,
            train_loader(train, [1] * len(train), *options, draws=True),
            loss_fn,
            lambda model: rates(look(model, "validation")),
            save,
            run=config.run,
            optim=config.optim,
            accelerator=accelerator,
            metric="accuracy",
            higher_is_better=True,
            unit="images",
        )
        model = Data2VecVisionForImageClassification.from_pretrained(out / "best", verbose=False)

    # The end: what the best model makes of images that chose nothing
    name, begun = "test" if "test" in splits else "validation", time.perf_counter()
    found = look(model, name)
    seconds = time.perf_counter() - begun
    results = rates(found) if labelled else {}
    if data.real:
        seen = read_real(data.real, [row["id"] for row in found], len(names))
        results["accuracy_real"] = real_accuracy(seen, [names.index(row["label"]) for row in found])
    if accelerator.is_main_process:
        write_csv(out / "predictions.csv", found)
        if labelled and len(names) <= 200:  # above that the picture would be too large to open
            plot_confusion(
                [row["reference"] for row in found], [row["label"] for row in found], names, out / "confusion.png"
            )
    return finish(
        out,
        results,
        found,
        split=name,
        seconds=seconds,
        trained="accuracy" if training else None,
        recipe="image_classification",
        task="image-classification",
        data=data.path or "handwritten digits",
        accelerator=accelerator,
        notes={"freeze": config.freeze} if training else None,
    )


def write_csv(path: Path, found: list[dict[str, Any]]) -> None:
    """Write a line an image: its file's name, the most likely classes, their shares."""
    ranks = range(1, 1 + len(found[0]["scores"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["filename", *(f"top{i}" for i in ranks), *(f"p{i}" for i in ranks)])
        lines.writerows([Path(row["id"]).name, *row["scores"], *row["scores"].values()] for row in found)


if __name__ == "__main__":
    run(main, Config, demo=Path(__file__).parent / "configs/image_classification/demo.yaml")
