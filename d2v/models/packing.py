"""Batches without padding: hidden states are *packed*, `(N, D)`, the N real positions of a batch, row after row.

Shapes: B batch, T frames or tokens, N real positions of a batch.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v.devices import moved


@dataclass(frozen=True)
class Packing:
    """Where the real positions of a padded batch are.

    Attributes:
        batch: B.
        length: T, the padded length.
        mask: (B, T) bool, True at real positions; None when every position is real.
        indices: (N,) the real positions in the flattened (B * T); None when every position is real.
        lengths: the rows' numbers of real positions, known on the host; None while compiling, where they are not.
        filler: how many of the N packed positions are zeros behind the real ones, see `d2v.models.cpu.filler`.
        real: the mask, (B * T), where it was given: on the host nothing has to be fetched to know what it says.
    """

    batch: int
    length: int
    mask: Tensor | None = None
    indices: Tensor | None = None
    lengths: tuple[int, ...] | None = None
    filler: int = 0
    real: Tensor | None = None

    @classmethod
    def of(
        cls, mask: Tensor | None, batch: int, length: int, filler: int = 0, device: torch.device | None = None
    ) -> "Packing":
        """Packing of a (B, T) mask, nonzero at real positions; None means that nothing is padded.

        A device that is asked what a mask on it says makes the host wait: a mask on the host, where its lengths and
        indices are made, costs no waiting.

        Args:
            mask: on any device.
            batch, length, filler: as the attributes.
            device: where hidden states are; by default where the mask is.
        """
        compiling = torch.compiler.is_compiling()
        if mask is None:
            return cls(batch, length, lengths=None if compiling else (length,) * batch, filler=filler)
        mask = mask.bool()
        lengths = None if compiling else tuple(mask.sum(dim=1).tolist())
        if lengths is not None and min(lengths) == length:
            return cls(batch, length, lengths=lengths, filler=filler)
        real, device = mask.flatten(), device or mask.device
        indices = moved(real.nonzero().squeeze(1), device)
        return cls(batch, length, moved(mask, device), indices, lengths, filler, real)

    @property
    def known_lengths(self) -> tuple[int, ...]:
        """`lengths`, for what cannot do without them."""
        if self.lengths is None and self.mask is None:
            return (self.length,) * self.batch
        if self.lengths is None:
            raise ValueError("while compiling, the lengths of padded rows are not known on the host")
        return self.lengths

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Neighbouring rows of one length, as (number of rows, length): the shapes that attention can take at once."""
        if self.mask is None:
            return [(self.batch, self.length)]
        return [(len(list(rows)), length) for length, rows in groupby(self.known_lengths)]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)"""
        x = x.flatten(0, 1)
        return self.fill(x if self.indices is None else x.index_select(0, self.indices))

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros at padded positions."""
        x = self.trim(x)
        if self.indices is not None:
            x = x.new_zeros(self.batch * self.length, *x.shape[1:]).index_copy(0, self.indices, x)
        return x.unflatten(0, (self.batch, self.length))

    def places(self, at: Tensor) -> Tensor:
        """(B, T) bool to the numbers, (n,), of the real packed positions where it is True; on the host if both are."""
        at = at.flatten() if self.real is None else at.flatten().to(self.real.device)[self.real]
        return at.nonzero().squeeze(1)

    def by_rows(self, device: torch.device) -> bool:
        """Whether attention had better take the rows one run at a time, see `attention_by_rows`."""
        return self.mask is None or (self.lengths is not None and device.type == "cpu")

    def firsts(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, ...), each row's first real position."""
        if self.mask is None:
            return self.trim(x)[:: self.length]
        real = self.mask.sum(dim=1)
        return x[real.cumsum(0) - real]

    def fill(self, x: Tensor) -> Tensor:
        """The real positions -> (N, ...), zeros behind."""
        return F.pad(x, (0, 0) * (x.ndim - 1) + (0, self.filler)) if self.filler else x

    def trim(self, x: Tensor) -> Tensor:
        """(N, ...) -> the real positions."""
        return x[: -self.filler] if self.filler else x

    def spread(self, x: Tensor) -> Tensor:
        """(B, ...) -> (N, ...), a row's value at each of its positions."""
        return self.fill(
            x.repeat_interleave(self.length, 0) if self.indices is None else x[self.indices // self.length]
        )
