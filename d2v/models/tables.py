"""Tables of relative positions for another grid of patches: in numpy, for the models of every backend."""

import numpy as np

from d2v.models.configuration import Grid


def offset_grid(grid: Grid) -> Grid:
    """How many offsets there are between two rows, and between two columns."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def resize_table(table: np.ndarray, old: Grid, new: Grid) -> np.ndarray:
    """A table of relative positions (offsets + 3, H) for another grid, as BEiT's `run_class_finetuning.py` makes it.

    The bias changes much between small offsets and little between large ones. So the old distances are laid on the new
    ones close together near 0 and farther and farther apart, see `stretched`, and a cubic spline gives the values at
    the distances between. The class token's three rows stay. Each axis has its own distances; one that keeps its size
    keeps its values.
    """
    from scipy.interpolate import make_interp_spline

    heads = table.shape[1]
    values = table[:-3].astype("float64").reshape(*offset_grid(old), heads)  # (2 * rows - 1, 2 * columns - 1, H)
    for axis in (0, 1):
        if old[axis] != new[axis]:
            distances = stretched(old[axis], new[axis])
            known = np.concatenate((-distances[::-1], [0.0], distances))
            wanted = np.arange(1.0 - new[axis], new[axis]).clip(known[0], known[-1])
            values = make_interp_spline(known, values, k=min(3, len(known) - 1), axis=axis)(wanted)
    return np.concatenate((values.reshape(-1, heads).astype(table.dtype), table[-3:]))


def stretched(old: int, new: int) -> np.ndarray:
    """Where distances 1 to old - 1 fall among 1 to new - 1: at 1, 1 + q, 1 + q + q^2 and so on, the last at the end.

    BEiT's bisection finds q between 1.01 and 1.5, to 1e-6; if that does not reach, the ends are as near as it gets.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**i for i in range(old - 1)) > new - 1 else (q, high)
    return np.cumsum(q ** np.arange(old - 1.0))
