"""Losses, each as (sum, count), so that whoever adds them up over micro-batches and ranks divides only once.

Shapes: B batch, T frames or tokens, C classes or vocabulary, L labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label that counts for nothing, as in `torch.nn.functional.cross_entropy`."""


def ctc(
    logits: Tensor, labels: Tensor, lengths: Tensor, *, blank: int, zero_infinity: bool = False, reduction: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Connectionist temporal classification (Graves et al., 2006).

    Args:
        logits: (B, T, C).
        labels: (B, L); `IGNORE` (as any negative number), or the blank, where a row has ended.
        lengths: (B,) real frames of each row.
        blank: id of the blank.
        zero_infinity: count 0, and no gradient, for labels that do not fit into their frames.
        reduction: "sum" adds up the rows' losses; "mean" divides each by its number of labels first.

    Returns:
        Sum over rows and the number of rows.
    """
    real = (labels >= 0) & (labels != blank)
    log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32).transpose(0, 1)  # (T, B, C)
    target_lengths = real.sum(dim=1)
    # cuDNN's CTC is not deterministic and takes no labels longer than 256.
    with torch.backends.cudnn.flags(enabled=False):
        losses = F.ctc_loss(
            log_probs,
            labels[real],
            lengths,
            target_lengths,
            blank=blank,
            reduction="none",
            zero_infinity=zero_infinity,
        )
    if reduction == "mean":
        losses = losses / target_lengths.clamp(min=1)
    return losses.sum(), lengths.new_tensor(len(labels))
