"""Rows that are held out of a split: a share, or one of several parts; by class or by group where there are any."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from d2v.config import Data
from d2v.data.rows import Split
from d2v.errors import InputError


def hold_out(
    train: Split, data: Data, seed: int, classes: Sequence[Any] | None, groups: Sequence[Any] | None
) -> tuple[Split, Split, str]:
    """The split without a share of its rows, that share as validation, and how it was chosen.

    Groups are held out whole, and by class each as often as in all; the last row or group of a class stays in train.
    Groups that nobody named are held out whole unless that takes more than twice the share. Running text is held out in
    one piece, its end.

    Args:
        train: rows.
        data: says which share.
        seed: of the choice.
        classes: of the rows, if they have one each.
        groups: of the rows, if they have any.

    Raises:
        InputError: there are too few rows or groups.
    """
    share, count = data.validation_share, len(train)
    if not 0 < share < 1:
        raise InputError(f"data.validation_share should be between 0 and 1, not {share}")
    wanted = math.ceil(share * count)
    if wanted >= count:
        where = data.path or "demo"
        raise InputError(f"{where}, train: {count} rows are too few to hold out a share of {share}")
    order = np.random.default_rng(seed).permutation(count)
    how = ""
    if data.running:
        held, how = np.arange(count) >= count - wanted, ", the end of the text"
    elif groups is not None and train.group:
        held, how = whole_groups(groups, wanted, order, classes), f", by {train.group}"
    else:
        held = np.zeros(count, dtype=bool)
        held[order[:wanted]] = True
        if classes is not None and (by_class := share_of_classes(classes, share, wanted, order)).any():
            held, how = by_class, ", by class"
        if groups is not None:
            with suppress(InputError):
                if (whole := whole_groups(groups, wanted, order, classes)).sum() <= 2 * wanted:
                    held, how = whole, f", by {data.together}"
            how += on_both_sides(groups, held, data)
    if data.running:
        order = np.arange(count)
    kept, taken = order[~held[order]], order[held[order]]
    return train.select(kept), train.select(taken, name="validation"), how


def on_both_sides(groups: Sequence[Any], held: np.ndarray, data: Data) -> str:
    """Of how many rows that are held out others of the same text or recording are not, for the line of splits."""
    learnt = {group for group, out in zip(groups, held, strict=True) if not out}
    count = sum(bool(out) and group in learnt for group, out in zip(groups, held, strict=True))
    return f"; {count} of them are of the same {data.together} as rows of train, see data.group_column" if count else ""


def codes(values: Sequence[Any]) -> np.ndarray:
    """(N,) a number for each different value, in the order in which they come."""
    numbers: dict[Any, int] = {}
    keys = (value if value.__hash__ else repr(value) for value in values)  # a label that is no label is refused later
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def ranks(numbers: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(N,) how many rows with the same number come before each in an order."""
    sort = order[np.argsort(numbers[order], kind="stable")]
    counts = np.bincount(numbers)
    found = np.empty(len(numbers), dtype=np.int64)
    found[sort] = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def share_of_classes(classes: Sequence[Any], share: float, wanted: int, order: np.ndarray) -> np.ndarray:
    """(N,) bool: the rows to hold out, of each class its share, rounded so that they are as many as wanted.

    Args:
        classes: of the rows.
        share: of each class.
        wanted: number of rows.
        order: (N,) the rows at random; the first of a class are held out.
    """
    numbers = codes(classes)
    counts = np.bincount(numbers)
    quota = np.floor(share * counts).astype(np.int64)
    rest = np.argsort(quota - share * counts, kind="stable")  # the largest remainders first
    for number in [number for number in rest if counts[number] > quota[number] + 1][: max(wanted - quota.sum(), 0)]:
        quota[number] += 1
    return ranks(numbers, order) < np.minimum(quota, counts - 1)[numbers]


def whole_groups(groups: Sequence[Any], wanted: int, order: np.ndarray, classes: Sequence[Any] | None) -> np.ndarray:
    """(N,) bool: the rows of groups to hold out, until they are as many as wanted; no class vanishes from the others.

    Raises:
        InputError: there are too few groups.
    """
    numbers = codes(groups)
    of_class = codes(classes) if classes is not None else np.zeros(len(numbers), dtype=np.int64)
    left = np.bincount(of_class)
    held, count = np.zeros(len(numbers), dtype=bool), 0
    rows = members(numbers)
    drawn = dict.fromkeys(numbers[order].tolist())
    for number in sorted(drawn, key=lambda number: len(rows[number]) > 2 * wanted):  # those far too large last
        own = np.bincount(of_class[rows[number]], minlength=len(left))
        if count >= wanted:
            break
        if ((left - own) > 0)[own > 0].all():
            held[rows[number]] = True
            left, count = left - own, count + len(rows[number])
    if not count:
        raise InputError(f"{len(rows)} groups are too few to hold one out, or each is the only one of a class")
    return held


def members(numbers: np.ndarray) -> list[np.ndarray]:
    """The rows of each number."""
    return np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])


def parse_fold(fold: str) -> tuple[int, int]:
    """The number of a part, from 1, and how many parts there are."""
    match = re.fullmatch(r"(\d+)/(\d+)", fold)
    if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise InputError(f"data.fold should be a part and how many there are, such as 2/5, not {fold!r}")
    return int(match[1]), int(match[2])


def parts(
    count: int, several: int, seed: int, classes: Sequence[Any] | None, groups: Sequence[Any] | None, *, running: bool
) -> np.ndarray:
    """(N,) the part that each row is in, from 0: about as many rows in each, and of each class; groups are whole.

    Args:
        count: number of rows.
        several: number of parts.
        seed: of the parts.
        classes: of the rows, if they have one each.
        groups: of the rows, if they have any.
        running: parts are pieces.
    """
    if running:
        return np.arange(count) * several // count
    order = np.random.default_rng(seed).permutation(count)
    if groups is None:
        numbers = codes(classes) if classes is not None else np.zeros(count, dtype=np.int64)
        # One class after another is dealt out, so that the parts are of one size too.
        sort = order[np.argsort(numbers[order], kind="stable")]
        dealt = np.empty(count, dtype=np.int64)
        dealt[sort] = np.arange(count) % several
        return dealt
    numbers = codes(groups)
    rows = members(numbers)
    if len(rows) < several:
        raise InputError(f"data.fold: {len(rows)} groups are too few for {several} parts")
    of_class = codes(classes) if classes is not None else np.zeros(count, dtype=np.int64)
    total = np.bincount(of_class)
    sizes = np.zeros((several, len(total)))
    dealt = np.empty(count, dtype=np.int64)
    shuffled = dict.fromkeys(numbers[order].tolist())
    for number in sorted(shuffled, key=lambda number: -len(rows[number])):  # the largest first, each to the emptiest
        own = np.bincount(of_class[rows[number]], minlength=len(total))
        part = int(np.argmin(((sizes + own) / total)[:, own > 0].max(axis=1) + sizes.sum(axis=1) / count))
        dealt[rows[number]] = part
        sizes[part] += own
    return dealt


def shared_groups(groups: Mapping[str, Sequence[str | None]]) -> list[tuple[str, str, list[str]]]:
    """Pairs of splits, and the groups that both have."""
    names = list(groups)
    counts = {name: Counter(value for value in values if value is not None) for name, values in groups.items()}
    pairs = [(one, two) for i, one in enumerate(names) for two in names[i + 1 :]]
    found = [(one, two, [each for each in counts[one] if each in counts[two]]) for one, two in pairs]
    return [(one, two, both) for one, two, both in found if both]
