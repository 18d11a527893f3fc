"""Pretraining on images without labels: `Data2VecVisionModel`, by predicting a teacher's view of masked patches.

    accelerate launch recipes/pretrain_vision.py
    accelerate launch recipes/pretrain_vision.py --config recipes/configs/pretrain_vision/base.yaml
    accelerate launch recipes/pretrain_vision.py --model facebook/data2vec-vision-base --data.path photos

The recipes for images take its `best/` as `--model`. Without a data option it trains on scenes of handwritten digits,
for a few minutes on a CPU.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from d2v import losses
from d2v.cli import run
from d2v.config import Optim, Run
from d2v.data.augment import Augment, augmenter
from d2v.data.image import fit_processor, load_images, picture_rows
from d2v.data.load import load
from d2v.data.loaders import eval_loader, train_loader
from d2v.data.pretraining import MaskedImageData, fit_blocks, masked_images, patches
from d2v.demo.images import pictures
from d2v.errors import InputError
from d2v.models.configuration import sides
from d2v.models.pretraining import at_masked, begin
from d2v.models.vision import Data2VecVisionModel
from d2v.processors.image import ImageProcessor
from d2v.training import build, start
from d2v.training.pretraining import finish_pretraining, pretrain
from d2v.training.probe import build_probe
from d2v.training.teaching import Pretraining, Teaching, student_and_teacher

PLAIN: dict[str, Any] = {"rand_augment": 0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0}


@dataclass
class Config(Pretraining):
    """Pretraining on images.

    Attributes:
        augment: augmentation of the training images, the same for student and teacher.
    """

    teacher: Teaching = field(
        default_factory=lambda: Teaching(layers=6, outputs="block", layer_norm="layer", target_norm="layer", beta=2.0)
    )
    data: MaskedImageData = field(default_factory=lambda: MaskedImageData(batch_size=128))
    augment: Augment = field(default_factory=lambda: Augment(color_jitter=0.4, **PLAIN))
    optim: Optim = field(
        default_factory=lambda: Optim(lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05, clip=3.0, schedule="cosine")
    )
    run: Run = field(default_factory=lambda: Run(out="runs/pretrain_vision"))

    def __post_init__(self):
        super().__post_init__()
        for name in ("mixup", "cutmix", "smoothing"):
            if getattr(self.augment, name):
                raise InputError(f"augment.{name} is for labels, which pretraining does not look at; it should be 0")


def main(config: Config) -> dict[str, Any]:
    """Pretrain a vision model; returns the content of `results.json`."""
    job, data = start(config), config.data

    # Data and processors: images
    splits = load(job, pictures, inputs={"image": data.image_column})
    rows = {name: picture_rows(job, split) for name, split in splits.items()}

    # Model: a student, given masked patches, and a teacher, its moving average, given all patches
    base = build(job, Data2VecVisionModel, always={"use_mask_token": True})  # the embedding of masked patches
    if not config.model:
        begin(base)
    grid, size, patch = base.config.grid(), sides(base.config.image_size), sides(base.config.patch_size)
    pixels = base.config.num_channels * patch[0] * patch[1]
    student, teacher = student_and_teacher(job, base, auxiliary=pixels, grid=grid)
    processor = ImageProcessor.for_model(config.model)
    processor = fit_processor(processor, size, data.crop_ratio, base.config.num_channels)
    augmented = augmenter(config.augment, processor, size)
    collate = partial(
        masked_images,
        processor=processor,
        augmented=augmented,
        data=fit_blocks(job, grid),
        grid=grid,
        views=config.economy.views,
    )

    # Loss: of the teacher's targets, see `pretrain`, and of the patches' pixels if wanted
    def auxiliary_loss(outputs, batch):
        return losses.regression(outputs, at_masked(patches(batch["pixel_values"], patch), batch["masked"]))[0]

    batches, held_out = train_loader(job, rows["train"], collate), eval_loader(job, rows["validation"], collate)
    probe = build_probe(job, rows, lambda rows: processor(load_images(rows, data, processor.channels)[1]))
    metrics = pretrain(job, student, teacher, batches, held_out, auxiliary_loss, keep=[processor], probe=probe)
    return finish_pretraining(job, metrics, rows["validation"], demo="scenes of digits", then="image_classification")


if __name__ == "__main__":
    run(main, Config)
