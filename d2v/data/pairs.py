"""Folders of images and their label maps, as data sets of semantic segmentation come."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from d2v.config import Data
from d2v.data.files import PICTURES, split_level, walk
from d2v.data.folders import left_out, listed_files
from d2v.data.sources import Source, read
from d2v.data.splits_of_tables import asked_splits
from d2v.data.tables import Remark
from d2v.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

Key = tuple[str, ...]
"""Folders and the name without its suffix."""

IMAGES = re.compile(r"images?|imgs?|jpegimages|leftimg8bit|photos|pictures|rgb|inputs?", re.IGNORECASE)
MASKS = re.compile(
    r"annotations?|masks?|labels?|label_?maps?|gtfine|gtcoarse|gt|ground_?truth|segmentation(class|s|_?masks?)?|segs?|"
    r"stuffthingmaps(_trainval2017)?|pixelmaps|targets?",
    re.IGNORECASE,
)
"""What the folders are called that have all images, and all label maps, of a set or of a split."""
ENDING = re.compile(
    r"_(leftImg8bit|gt(Fine|Coarse)_label(Train)?Ids|L|mask|label|labels|seg|segmentation|gt)$", re.IGNORECASE
)
OTHER_MAPS = re.compile(r"_(color|instance(Train)?Ids)$")
OTHER_FOLDERS = re.compile(r"segmentation(object|class.)\w*", re.IGNORECASE)
"""Label maps of other kinds beside those of classes, as Cityscapes and Pascal VOC have them."""


def read_pairs(data: Data) -> Mapping[str, "Dataset"]:
    """All splits of a source; a folder of images with their label maps is read here, anything else by `read`.

    A label map has the path of its image but for a folder's name, such as `annotations` in place of `images`, and for
    what its name ends in where no other image has this very name: `images/training/x.jpg` and
    `annotations/training/x.png` as in ADE20K, `train/images/x.jpg` and `train/masks/x_mask.png`,
    `leftImg8bit/val/a/x_leftImg8bit.png` and `gtFine/val/a/x_gtFine_labelIds.png`.

    Raises:
        InputError: an image of a split with label maps has none or two, or as in `read`.
    """
    root = Path(data.path or "")
    files = walk(root) if root.is_dir() else []
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    pictures = [path for path in pictures if not any(map(OTHER_FOLDERS.fullmatch, path.parts[:-1]))]
    maps = {path: key for path in pictures if (key := map_key(path)) and not OTHER_MAPS.search(path.stem)}
    images = {path: image_key(path) for path in pictures if map_key(path) is None}
    if not maps or not images:
        return read(data)
    remarks: list[Remark] = []
    splits = listed_files(root, files, list(images), remarks, "Segmentation")  # what no list names is in no split
    if not splits:
        level = split_level([PurePath(*key) for key in images.values()], asked_splits(data))
        for path, place in images.items():
            inside = level is not None and len(place) > level + 1
            splits.setdefault(place[level] if inside else "train", []).append(path)  # type: ignore[index]
    map_of = match_maps(root, images, maps)
    if others := sorted(maps.keys() - map_of.values()):
        remarks.append(left_out(root, others, "not read: {}, label maps of no image, or of one that has another"))
    readers = {
        name: partial(pair_up, root, paths, [map_of.get(path) for path in paths], data, remarks)
        for name, paths in splits.items()
    }
    return Source(readers, remarks)


def match_maps(root: Path, images: Mapping[PurePath, Key], maps: Mapping[PurePath, Key]) -> dict[PurePath, PurePath]:
    """The label map of each image that has one: that of its very name first, then of a name but for its ending.

    Args:
        root: of all paths.
        images, maps: files, and their keys.

    Raises:
        InputError: an image has two.
    """
    map_of: dict[PurePath, PurePath] = {}
    free = {path for path in maps if not (path.stem.endswith("labelIds") and trained(path) in maps)}
    for short_image, short_map in product((False, True), repeat=2):
        found: dict[Key, list[PurePath]] = {}
        for path in maps:
            if path in free:
                found.setdefault(shortened(maps[path]) if short_map else maps[path], []).append(path)
        for image, key in images.items():
            same = found.get(shortened(key) if short_image else key, []) if image not in map_of else []
            if len(same) > 1:
                raise InputError(f"{root / image}: has two label maps, {same[0]} and {same[1]}; should have one")
            if same:
                map_of[image] = same[0]
        free -= set(map_of.values())
    return map_of


def trained(path: PurePath) -> PurePath:
    """Cityscapes' map of the numbers to train with, beside that of all."""
    return path.with_name(path.name.replace("labelIds", "labelTrainIds"))


def shortened(key: Key) -> Key:
    """A key without what the names of images and label maps end in."""
    return (*key[:-1], ENDING.sub("", key[-1]))


def image_key(path: PurePath) -> Key:
    """What an image and its label map have in common: the path without the folder of all images."""
    folders = list(path.parts[:-1])
    for i, folder in enumerate(folders):
        if IMAGES.fullmatch(folder):
            del folders[i]
            break
    return (*folders, path.stem)


def map_key(path: PurePath) -> Key | None:
    """The same of a label map; None for other images."""
    folders = list(path.parts[:-1])
    for i, folder in enumerate(folders):
        if MASKS.fullmatch(folder):
            del folders[i]
            return (*folders, path.stem)
        if match := re.fullmatch(r"(.+?)_?(annot|masks?|labels?)", folder, re.IGNORECASE):
            folders[i] = match[1]
            return (*folders, path.stem)
    return None


def pair_up(
    root: Path, images: Sequence[PurePath], maps: Sequence[PurePath | None], data: Data, remarks: list[Remark]
) -> "Dataset":
    """The images of a split with their label maps, or without any where none has one.

    Raises:
        InputError: some have none, and `data.bad_rows` does not skip them.
    """
    import datasets

    image_column, mask_column = data.image_column, data.mask_column  # type: ignore[attr-defined]
    if not any(maps):
        return datasets.Dataset.from_dict({image_column: [str(root / path) for path in images]})
    if lacking := [image for image, mask in zip(images, maps, strict=True) if mask is None]:
        count = f"{len(lacking)} of {len(images)} images have no label map"
        if data.bad_rows == "refuse":
            looked = ", ".join(dict.fromkeys(path.parts[0] for path in maps if path))
            raise InputError(
                f"{root / lacking[0]}: has no label map in {looked}; {count} (--data.bad_rows skip leaves such out)"
            )
        line = f"{root}: {count} and are left out; the first is {lacking[0]}"
        remarks.append(("rows left out", line, {"rows": len(lacking), "first": str(lacking[0])}))
    pairs = [(str(root / image), str(root / mask)) for image, mask in zip(images, maps, strict=True) if mask]
    return datasets.Dataset.from_dict({image_column: [i for i, _ in pairs], mask_column: [m for _, m in pairs]})
