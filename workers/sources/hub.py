"""Downloads checkpoints from a Hugging Face hub: safetensors, configuration and tokenizer; never code."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.hf_api import RepoSibling

from app.domain.errors import CorruptCheckpoint, HubUnreachable
from app.domain.model_names import COMMIT, ModelName
from app.settings import Settings
from app.storage.artifacts import require_free_disk
from app.storage.checkpoints import (
    MODEL_FILE_SUFFIXES,
    WEIGHTS,
    WEIGHTS_INDEX,
    cached_sha256,
    read_index,
    refuse_without_weights,
)
from app.storage.sources import snapshot_folder
from workers.sources.download_progress import DownloadProgress
from workers.sources.hub_errors import translated
from workers.sources.importing import Report, import_once, telling

# As sentence-transformers names it.
POOLING = re.compile(r"\d_Pooling/config\.json")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a hub repository. `files` are those that belong to a model."""

    model: ModelName
    commit: str
    files: dict[str, RepoSibling]

    def size_bytes(self, names: list[str]) -> int:
        return sum(self.files[name].size or 0 for name in names)

    def companions(self) -> list[str]:
        return sorted(name for name in self.files if not name.endswith(".safetensors"))


def import_from_hub(model: ModelName, settings: Settings, report: Report) -> Path:
    """Downloads what a commit needs, unless that very commit is here already.

    Raises SourceNotFound, HubUnreachable, PickleCheckpoint, CorruptCheckpoint, DiskFull, or InvalidRequest
    when the hub wants a token.
    """
    snapshot = _look_up(model, settings)
    target = snapshot_folder(model.repo, snapshot.commit, settings)
    return import_once(target, lambda folder: _fill(snapshot, folder, settings, report), telling(report))


def _look_up(model: ModelName, settings: Settings) -> Snapshot:
    api = HfApi(endpoint=settings.hub_endpoint, token=settings.hub_token or False)
    with translated(model, settings):
        info = api.model_info(
            model.repo, revision=model.revision, files_metadata=True, timeout=settings.hub_timeout_seconds
        )
    names = [file.rfilename for file in info.siblings or ()]
    if WEIGHTS not in names and WEIGHTS_INDEX not in names:
        refuse_without_weights(model.name, names)
    # The hash becomes a folder's name, so it is not taken on trust.
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise HubUnreachable(
            f"{settings.hub_endpoint} gave {info.sha!r} as the commit of {model.name!r}; "
            "BITMILL_HUB_ENDPOINT must be a Hugging Face hub or a mirror of one"
        )
    files = {file.rfilename: file for file in info.siblings or () if _belongs(file.rfilename)}
    return Snapshot(model, info.sha, files)


def _belongs(name: str) -> bool:
    """Only files at the top: subfolders hold other formats, and a slash might lead out of the folder.

    One exception, by its exact form: how a model for embeddings pools.
    """
    if POOLING.fullmatch(name):
        return True
    plain = "/" not in name and "\\" not in name and not name.startswith(".")
    return plain and name.endswith(MODEL_FILE_SUFFIXES)


def _fill(snapshot: Snapshot, folder: Path, settings: Settings, report: Report) -> None:
    """Downloads into `folder`; files that an interrupted download finished are not fetched again."""
    companions = snapshot.companions()
    require_free_disk(folder, snapshot.size_bytes(companions), settings.min_free_disk_bytes)
    _download(snapshot, companions, folder, settings, lambda fraction, stage: None)
    weights = _weights(snapshot, folder)
    missing = [name for name in weights if not (folder / name).exists()]
    require_free_disk(folder, snapshot.size_bytes(missing), settings.min_free_disk_bytes)
    _download(snapshot, weights, folder, settings, report)
    _verify(snapshot, weights, folder, settings)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _weights(snapshot: Snapshot, folder: Path) -> list[str]:
    """The files that transformers would load: not every safetensors file of a repository is one."""
    if WEIGHTS in snapshot.files:
        return [WEIGHTS]
    shards = sorted(set(read_index(folder / WEIGHTS_INDEX).values()))
    missing = [shard for shard in shards if shard not in snapshot.files]
    if missing:
        raise CorruptCheckpoint(
            f"{WEIGHTS_INDEX} of {snapshot.model.name!r} names the shard {missing[0]!r}, which the hub "
            "does not have; ask its authors, or choose another revision",
            param="model",
        )
    return shards


def _download(snapshot: Snapshot, names: list[str], folder: Path, settings: Settings, report: Report) -> None:
    progress = DownloadProgress(snapshot.size_bytes(names), report, f"downloading {snapshot.model.name}")
    for name in names:
        with translated(snapshot.model, settings):
            hf_hub_download(
                snapshot.model.repo,
                name,
                revision=snapshot.commit,
                local_dir=folder,
                endpoint=settings.hub_endpoint,
                token=settings.hub_token or False,
                etag_timeout=settings.hub_timeout_seconds,
                tqdm_class=progress.bar(),
            )
        progress.finish(snapshot.files[name].size or 0)


def _verify(snapshot: Snapshot, names: list[str], folder: Path, settings: Settings) -> None:
    """Compares weights with the SHA-256 that the hub states. The hashes are kept for the fingerprint."""
    for name in names:
        large = snapshot.files[name].lfs
        stated = large.sha256 if large else None
        found = cached_sha256(folder / name, settings.cache_folder)
        if stated is not None and found != stated:
            (folder / name).unlink()
            raise CorruptCheckpoint(
                f"{name} of {snapshot.model.name!r} arrived with SHA-256 {found}, but the hub states "
                f"{stated}; submit the job again to download it again",
                param="model",
            )
