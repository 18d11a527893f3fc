"""The embedded demo sets of images, from scikit-learn's handwritten digits: 1,797 of 8 x 8 pixels, by 13 people."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset


def digits() -> dict[str, "Dataset"]:
    """Handwritten digits: `image`, a PNG of 32 x 32 pixels as {bytes, path}, and `label`, "0" to "9".

    Every seventh is in the test, every seventh in the validation, which so have all digits and writers.
    """
    import datasets
    from sklearn.datasets import load_digits

    found = load_digits()
    names = datasets.ClassLabel(names=[str(name) for name in found.target_names])
    features = datasets.Features({"image": datasets.Image(decode=False), "label": names})
    rows: dict[str, list[dict]] = {"train": [], "validation": [], "test": []}
    for i, (pixels, label) in enumerate(zip(found.images, found.target, strict=True)):
        split = {0: "test", 1: "validation"}.get(i % 7, "train")
        grey = Image.fromarray((pixels * 255 / 16).astype(np.uint8))  # they have 0 to 16
        image = {"bytes": png(grey.resize((32, 32), Image.Resampling.BICUBIC)), "path": f"{split}-{i}.png"}
        rows[split].append({"image": image, "label": int(label)})
    return {split: datasets.Dataset.from_list(items, features) for split, items in rows.items()}


SCENE_CLASSES = ["background", *(f"digit {i}" for i in range(10))]


def scenes(*, seed: int = 0, _sizes: tuple[int, int, int] = (1000, 60, 120)) -> dict[str, "Dataset"]:
    """Scenes of handwritten digits: `image` and `annotation`, PNGs of 64 x 64 pixels as {bytes, path}.

    A scene is a texture of which each quarter may have a digit, of any colour and 24 to 32 pixels large. The annotation
    has 0 for the texture and 1 + the digit for its strokes. The splits have other digits, those of `digits`.

    Args:
        seed: of the scenes.
        _sizes: scenes of train, validation and test.
    """
    import datasets

    picture = datasets.Image(decode=False)
    features = datasets.Features({"id": datasets.Value("string"), "image": picture, "annotation": picture})
    splits = {}
    for number, ((split, found), size) in enumerate(zip(digits().items(), _sizes, strict=True)):
        random = np.random.default_rng((seed, number))
        strokes = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in found["image"]]
        rows = []
        for i in range(size):
            scene, labels = compose(strokes, found["label"], random)
            columns = {"image": scene, "annotation": labels}
            pictures = {name: {"bytes": png(value), "path": f"{split}-{i}.png"} for name, value in columns.items()}
            rows.append({"id": f"{split}-{i}"} | pictures)
        splits[split] = datasets.Dataset.from_list(rows, features)
    return splits


def pictures(*, _sizes: tuple[int, int] = (4000, 100)) -> dict[str, "Dataset"]:
    """Scenes and digits without labels, for pretraining: `image`, PNGs as {bytes, path}, of train and validation.

    The scenes are others than those of `scenes`, and made of the digits that train or validation has there too.
    """
    import datasets

    features = datasets.Features({"image": datasets.Image(decode=False)})
    made, alone = scenes(seed=1, _sizes=(*_sizes, 1)), digits()
    images = {split: [*made[split]["image"], *alone[split]["image"]] for split in ("train", "validation")}
    return {split: datasets.Dataset.from_dict({"image": found}, features) for split, found in images.items()}


def compose(
    strokes: list[np.ndarray], labels: list[int], random: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """A scene and its annotation.

    Args:
        strokes: digits, (32, 32) uint8, white on black.
        labels: which digit each is.
        random: decides everything.
    """
    texture = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    scene = 0.4 * np.asarray(texture.resize((64, 64), Image.Resampling.BICUBIC), np.float32)  # dark
    annotation = np.zeros((64, 64), np.uint8)
    for row, column in ((0, 0), (0, 32), (32, 0), (32, 32)):
        i, side, ink = random.integers(len(strokes)), int(random.integers(24, 33)), random.integers(150, 256, 3)
        top, left = np.array((row, column)) + random.integers(0, 33 - side, 2)
        if random.random() < 0.25:
            continue
        place = slice(top, top + side), slice(left, left + side)
        digit = np.asarray(Image.fromarray(strokes[i]).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
        scene[place] += digit[:, :, None] * (ink - scene[place])
        annotation[place][digit > 0.4] = 1 + labels[i]
    return Image.fromarray(scene.astype(np.uint8)), Image.fromarray(annotation)


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
