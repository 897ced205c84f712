"""The values that whole numbers can stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Grid:
    """A weight (out, in) is stored as whole codes from `lowest` to `highest`, each meaning (code - zero point) · scale.

    `scale` and `zero_point` have the shape (out, groups); each group is an equal share of a row.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor
    lowest: int
    highest: int

    def of_columns(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of every weight, each (out, columns), as float32."""
        repeats = columns // self.scale.shape[1]
        scale, zero_point = self.scale.float(), self.zero_point.float()
        return scale.repeat_interleave(repeats, dim=1), zero_point.repeat_interleave(repeats, dim=1)

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest codes, as floats."""
        scale, zero_point = self._of_groups()
        codes = (self._groups(weight) / scale).add_(zero_point).round_()
        return codes.clamp_(self.lowest, self.highest).flatten(1)

    def restore(self, codes: torch.Tensor) -> torch.Tensor:
        """The weight (out, in), float32, that the codes mean."""
        scale, zero_point = self._of_groups()
        return (self._groups(codes) - zero_point).mul_(scale).flatten(1)

    def _groups(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.float().unflatten(1, (self.scale.shape[1], -1))

    def _of_groups(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point beside the weights of their group, as float32."""
        return self.scale.float()[..., None], self.zero_point.float()[..., None]
