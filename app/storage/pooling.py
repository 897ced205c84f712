"""Whether a checkpoint is a model for embeddings, and how its vectors are made: without any ML library.

https://sbert.net/docs/package_reference/sentence_transformer/models.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.domain.errors import IncompatibleModel

Mode = Literal["mean", "cls", "lasttoken"]
MODULES: Final = "modules.json"
# In older files each way has a switch of its own.
SWITCHES: Final[dict[str, Mode]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
MODES: Final[dict[str, Mode]] = {mode: mode for mode in SWITCHES.values()}


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the vectors of a text's tokens become one vector."""

    mode: Mode
    normalize: bool


def read_pooling(folder: Path) -> Pooling | None:
    """None for a model that generates text. Raises IncompatibleModel for modules that have no place here."""
    if (folder / MODULES).is_file():
        return _from_modules(folder)
    return Pooling("mean", normalize=True) if _is_bare(folder) else None


def is_for_embeddings(folder: Path) -> bool:
    """Whether `read_pooling` takes it for one, also where it then refuses how the model pools."""
    return (folder / MODULES).is_file() or _is_bare(folder)


def _is_bare(folder: Path) -> bool:
    """A model without a head, such as BertModel, can only be one for embeddings."""
    config = folder / "config.json"
    names = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("Model")


def pooling_files(folder: Path) -> list[Path]:
    """The files beyond the folder's top that `read_pooling` needs, relative to the folder."""
    if not (folder / MODULES).is_file():
        return []
    found = [Path(module["path"]) / "config.json" for module in _modules(folder) if _kind(module) == "Pooling"]
    return [path for path in found if (folder / path).is_file()]


def _from_modules(folder: Path) -> Pooling:
    modules = {_kind(module): module for module in _modules(folder)}
    if unknown := sorted(set(modules) - {"Transformer", "Pooling", "Normalize"}):
        raise IncompatibleModel(f"the model makes its vectors with {', '.join(unknown)}, which cannot be done here")
    if "Pooling" not in modules:
        raise IncompatibleModel(f"{MODULES} names no pooling: how a text becomes one vector is not known")
    return Pooling(_mode(folder / modules["Pooling"]["path"] / "config.json"), normalize="Normalize" in modules)


def _modules(folder: Path) -> list[dict[str, Any]]:
    modules: list[dict[str, Any]] = json.loads((folder / MODULES).read_text())
    return modules


def _kind(module: dict[str, Any]) -> str:
    return str(module["type"]).rpartition(".")[2]


def _mode(path: Path) -> Mode:
    if not path.is_file():
        raise IncompatibleModel(
            f"{path.parent.name}/{path.name} is missing: how a text becomes one vector is not known"
        )
    config = json.loads(path.read_text())
    asked = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    asked += [
        SWITCHES.get(name, name) for name, on in config.items() if name.startswith("pooling_mode_") and on is True
    ]
    if len(asked) != 1 or asked[0] not in MODES:
        raise IncompatibleModel(f"the model pools by {', '.join(asked) or 'nothing'}; known are {', '.join(MODES)}")
    return MODES[asked[0]]
