"""What is served: a model's files, how it is to be loaded, and an adapter on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.domain.artifacts import ArtifactFormat
from app.domain.serving import DeploymentOptions


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """Low-rank matrices in folders of peft's, under the name that clients give.

    More than one where the adapter was trained on a model that is an adapter itself: it changes what that made.
    """

    name: str
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the pool has to know of a model: its files, and how it is to be served.

    `method` is the quantization method that made it, None where nobody did. `draft` has the files of the draft
    model that its options name. A remote model has no files of its own. `evaluations` are the results of its
    evaluations, newest first. With an `adapter` it is the base that the adapter is served on.
    """

    name: str
    folder: Path
    format: ArtifactFormat
    method: str | None = None
    options: DeploymentOptions = field(default_factory=DeploymentOptions)
    draft: Path | None = None
    evaluations: tuple[dict[str, Any], ...] = ()
    adapter: ServedAdapter | None = None

    @property
    def public_name(self) -> str:
        """What the client asked for."""
        return self.adapter.name if self.adapter else self.name
