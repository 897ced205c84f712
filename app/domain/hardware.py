"""What machines have, as values."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel


class Device(StrEnum):
    CPU = "cpu"
    GPU = "gpu"


class Gpu(BaseModel, frozen=True):
    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]


class Hardware(BaseModel, frozen=True):
    """One machine, as its worker saw it at start."""

    hostname: str
    processor: str
    cores: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def devices(self) -> frozenset[Device]:
        return frozenset({Device.CPU} | ({Device.GPU} if self.gpus else set()))
