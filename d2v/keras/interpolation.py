"""Interpolation and pooling of maps as products with small matrices, which are the same on every backend.

What Keras offers differs: where samples lie, at the edges, and in the cubic's constant. Each function here returns a
matrix (new, old) in float64 for one axis; sizes are known when a graph is made. Shapes: B batch, D width.
"""

import math
from functools import cache

import numpy as np
from keras import ops


def place(taps: np.ndarray, weights: np.ndarray, old: int) -> np.ndarray:
    """Weights (new, taps) at positions (new, taps), those beyond an edge at the edge: (new, old)."""
    matrix = np.zeros((len(taps), old))
    np.add.at(matrix, (np.arange(len(taps))[:, None], taps.clip(0, old - 1)), weights)
    return matrix


def centres(old: int, new: int) -> np.ndarray:
    """Where the new samples lie among the old ones: both fill the same length."""
    return (np.arange(new) + 0.5) * old / new - 0.5


@cache
def bilinear(old: int, new: int) -> np.ndarray:
    """As `torch.nn.functional.interpolate` does with `mode="bilinear"`."""
    at = centres(old, new).clip(0)
    left = np.floor(at).astype(int)
    share = at - left
    return place(np.stack((left, left + 1), axis=1), np.stack((1 - share, share), axis=1), old)


@cache
def bicubic(old: int, new: int) -> np.ndarray:
    """As it does with `mode="bicubic"`: Keys's kernel with -0.75."""
    at, a = centres(old, new), -0.75
    left = np.floor(at).astype(int)
    taps = left[:, None] + np.arange(-1, 3)
    x = np.abs(at[:, None] - taps)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return place(taps, np.where(x <= 1, near, far), old)


@cache
def adaptive_mean(old: int, new: int) -> np.ndarray:
    """Means over parts that may overlap, as `torch.nn.functional.adaptive_avg_pool2d` takes them."""
    matrix = np.zeros((new, old))
    for i in range(new):
        start, stop = i * old // new, math.ceil((i + 1) * old / new)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix


def resample(x, size: tuple[int, int], matrix=bilinear):
    """Maps (B, height, width, D) at another size."""
    for axis, (letters, new) in enumerate(zip(("oh,bhwd->bowd", "ow,bhwd->bhod"), size, strict=True), 1):
        if matrix is adaptive_mean or x.shape[axis] != new:
            x = ops.einsum(letters, ops.convert_to_tensor(matrix(x.shape[axis], new), dtype=x.dtype), x)
    return x
