"""What a model says of each class of a row.

Shapes: C classes.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np


class Scores(Mapping[str, float]):
    """The scores of classes by name, in their order, in a tenth of the memory that a dict takes.

    Attributes:
        numbers: class name to number, of all rows the same.
        array: (C,) the scores.
    """

    __slots__ = ("array", "numbers")

    def __init__(self, numbers: Mapping[str, int], scores: Sequence[float]):
        self.numbers, self.array = numbers, np.asarray(scores, dtype=np.float64)

    def __getitem__(self, name: str) -> float:
        return float(self.array[self.numbers[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
