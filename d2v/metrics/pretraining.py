"""Figures on whether a teacher's targets are still informative: deviations and effective ranks.

Shapes: N positions, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.models.pretraining import PretrainingOutput


def effective_rank(covariance: Tensor) -> float:
    """The exponential of the entropy of the eigenvalues' shares: the equivalent number of equally strong directions.

    Args:
        covariance: (D, D).

    Returns:
        NaN if it is not finite, after a skipped update.
    """
    covariance = covariance.float()  # fp64 takes half as long again, at each log line
    if not covariance.isfinite().all():
        return math.nan
    eigenvalues = torch.linalg.eigvalsh(covariance).double().clamp(min=0)
    shares = eigenvalues / eigenvalues.sum().clamp(min=1e-30)
    return float(torch.exp(-(shares * shares.clamp(min=1e-30).log()).sum()))


class Moments:
    """First and second moments of targets, predictions and the encoder's input over batches."""

    def __init__(self) -> None:
        self.products: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, output: PretrainingOutput, counts: bool = True) -> None:
        """Add a batch; one whose `counts` is False adds nothing, see `d2v.data.loaders.Updates`."""
        named = {"front": output.front}
        if output.targets is not None and output.predictions is not None:
            error = output.predictions.float() - output.targets.float()
            named |= {"target": output.targets, "prediction": output.predictions, "error": error}
        for name, values in named.items():
            x = F.pad(values.float(), (0, 1), value=1.0)[: None if counts else 0]  # the last column counts
            with torch.autocast(x.device.type, enabled=False):  # in 16 bits, counts and differences are wrong
                self.products[name] = self.products.get(name, 0) + x.T @ x

    def figures(self) -> dict[str, float]:
        """Over all processes: each `rank` and `deviation`, and the `unexplained` share of the targets' variance."""
        from accelerate import PartialState
        from accelerate.utils import gather_object, reduce

        values, moments = {}, {}
        sizes = gather_object([{name: len(total) for name, total in self.products.items()}])
        for name, size in {name: size for each in sizes for name, size in each.items()}.items():
            total = self.products.get(name)
            total = torch.zeros(size, size, device=PartialState().device) if total is None else total
            total = reduce(total if total.device.type == "mps" else total.double(), "sum").cpu().double()
            count = max(float(total[-1, -1]), 1.0)
            mean = total[-1, :-1] / count
            moments[name] = total[:-1, :-1] / count, mean.outer(mean)
        for name in moments.keys() - {"error"}:
            covariance = torch.sub(*moments[name])
            values[f"{name}_rank"] = effective_rank(covariance)
            values[f"{name}_deviation"] = float(covariance.diagonal().clamp(min=0).sqrt().mean())
        if "error" in moments:
            variance = float(torch.sub(*moments["target"]).trace())
            values["unexplained"] = float(moments["error"][0].trace()) / max(variance, 1e-12)
        return dict(sorted(values.items()))
