"""Parameters that several methods share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

SkipModules = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$", max_length=200)], ...],
    Field(
        description="Linear layers to leave alone beside the output head, by name, its end (`down_proj`) or its "
        "start (`model.layers.0`).",
    ),
]
