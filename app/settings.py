"""The only reader of the environment. Every setting is a variable with the prefix BITMILL_."""

from __future__ import annotations

import shlex
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.domain.serving import FOREVER, KeepAlive


def _split(value: object, separator: str) -> object:
    return [part for part in value.split(separator) if part] if isinstance(value, str) else value


class RemoteServer(BaseModel, extra="forbid", frozen=True):
    """A server that speaks the OpenAI API. `url` ends where `/chat/completions` would follow, such as `…/v1`."""

    url: str = Field(pattern=r"^https?://")
    api_key: SecretStr | None = None


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BITMILL_", extra="ignore", frozen=True)

    data_dir: Path = Field(
        default=Path("bitmill-data"),
        description="Folder for the database, artifacts, caches and logs of the embedded mode.",
    )
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the API listens on.")
    api_processes: int = Field(default=1, ge=1, le=256, description="Processes that share the API's port.")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Comma-separated keys, one of which /v1 then demands as a bearer token. Unset, it answers anybody.",
    )
    database_url: str | None = Field(default=None, description="SQLAlchemy URL. Default: SQLite in the data folder.")
    broker_url: str | None = Field(
        default=None,
        description="Celery broker, such as redis://localhost:6379/0. Default: files in the data folder.",
    )
    broker_polling_seconds: float = Field(
        default=0.1, gt=0, description="How often the filesystem broker is looked at."
    )
    source_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="Folders whose checkpoints may be quantized, separated by colons. "
        "Default: models/ in the data folder.",
    )
    hub_endpoint: str = Field(
        default="https://huggingface.co", description="Hub from which `org/name` models are downloaded."
    )
    hub_token: str | None = Field(default=None, description="Token for gated or private hub models.")
    hub_timeout_seconds: float = Field(
        default=10.0, gt=0, description="How long the hub may take to answer before a job fails."
    )
    serving_url: str = Field(
        default="http://127.0.0.1:8001", description="Address of the serving host that the API forwards to."
    )
    serving_max_models: int = Field(
        default=2,
        ge=1,
        description="Models a serving host keeps loaded; the least recently used idle one goes.",
    )
    serving_load_timeout_seconds: float = Field(default=300.0, gt=0, description="How long a model may take to load.")
    serving_context_length: int = Field(
        default=4096, ge=64, description="Context length, in tokens, with which models are loaded."
    )
    serving_slots: int = Field(default=16, ge=1, description="Requests that one loaded model works on at a time.")
    serving_threads: int = Field(default=0, ge=0, description="Threads per engine; 0 chooses by measuring.")
    serving_queue: int = Field(
        default=256, ge=0, description="Requests that may wait for a loaded model's slots; one more is told to retry."
    )
    serving_queue_timeout_seconds: float = Field(
        default=60.0, gt=0, description="How long a request waits for a slot, or for room for its model."
    )
    serving_yield_seconds: float = Field(
        default=10.0, gt=0, description="How long a model without a place waits before a busy one has to give way."
    )
    serving_first_token_timeout_seconds: float = Field(
        default=300.0, gt=0, description="How long a loaded model may take until a streamed answer begins."
    )
    serving_total_timeout_seconds: float = Field(default=3600.0, gt=0, description="How long a whole answer may take.")
    serving_probe_seconds: float = Field(
        default=10.0, gt=0, description="How often a loaded model's engine is asked whether it is well."
    )
    serving_probe_timeout_seconds: float = Field(
        default=30.0, gt=0, description="How long an engine may take to answer that; a busy one is slow to."
    )
    serving_hung_after_probes: int = Field(
        default=3, ge=1, description="An engine that leaves so many probes in a row unanswered is replaced."
    )
    serving_stall_seconds: float = Field(
        default=600.0, gt=0, description="An engine that gets nowhere for so long, with requests on it, is replaced."
    )
    serving_hung_after_timeouts: int = Field(
        default=2,
        ge=1,
        description="An engine on which so many requests in a row run out of time without a token is replaced.",
    )
    serving_keep_alive: KeepAlive = Field(
        default=FOREVER,
        description="How long an idle model stays loaded: seconds, or such as 10m; -1 until its room is needed.",
    )
    serving_gpu_memory_share: float = Field(
        default=0.9, gt=0, le=1, description="The share of a GPU's memory that models may fill."
    )
    engines_dir: Path | None = Field(
        default=None,
        description="Folder for engines with environments of their own. Default: engines/ in the data folder.",
    )
    remotes: dict[str, RemoteServer] = Field(
        default={},
        description="Servers that models may be deployed on, as JSON: "
        '{"name": {"url": "http://host:8000/v1", "api_key": "…"}}.',
    )
    lease_seconds: float = Field(
        default=60.0,
        gt=0,
        description="A running job whose worker is silent for this long is queued again; for as long a worker goes on "
        "while the database is away.",
    )
    heartbeat_seconds: float = Field(
        default=2.0, gt=0, description="How often a worker renews its lease and its own row."
    )
    worker_grace_seconds: float = Field(
        default=120.0, gt=0, description="A job is accepted if a fitting worker was seen this recently."
    )
    job_silence_seconds: float = Field(
        default=300.0,
        gt=0,
        description="A job's process that gives no sign of life for this long is ended; that counts as an attempt.",
    )
    stage_timeout_seconds: float = Field(
        default=7200.0,
        gt=0,
        description="A job whose work gets no further for this long is ended in the same way, with the stage named.",
    )
    max_attempts: int = Field(
        default=3, ge=1, description="How often a job may lose its worker or its process before it fails."
    )
    min_free_disk_bytes: int = Field(default=256 * 1024**2, ge=0, description="Free disk space that a job must leave.")
    quarantine_days: float = Field(
        default=7.0,
        ge=0,
        description="How long files that the database does not know are kept aside, in quarantine/ of the data folder, "
        "before they are deleted.",
    )
    max_shard_bytes: int = Field(
        default=4 * 1024**3, ge=1024, description="Size limit of one safetensors file of an artifact."
    )
    stage_cache_bytes: int = Field(
        default=50 * 1024**3,
        ge=0,
        description="What intermediate results that jobs share, such as converted models, may take on disk.",
    )
    max_body_bytes: int = Field(
        default=16 * 1024**2, ge=1024, description="Size limit of a request's body, uploads of files apart."
    )
    max_upload_bytes: int = Field(default=50 * 1024**3, ge=1, description="Size limit of one uploaded file.")
    max_unpacked_bytes: int = Field(
        default=200 * 1024**3, ge=1, description="Size limit of what one uploaded archive unpacks to."
    )
    evaluation_context_length: int = Field(
        default=512, ge=8, description="Window, in tokens, in which the quality card's sample is scored."
    )
    evaluation_windows: int = Field(
        default=4, ge=1, description="Windows of the built-in sample that are scored at most."
    )
    training_checkpoint_seconds: float = Field(
        default=90.0, gt=0, description="How often a fine-tuning job writes a checkpoint, besides each epoch's end."
    )
    tasks_dir: Path | None = Field(
        default=None,
        description="A folder with task files of your own for lm-evaluation-harness, beside those it comes with.",
    )
    gguf_converter: str | None = Field(
        default=None,
        description="Command that makes GGUF files of architectures without a built-in converter, with `{source}` (a "
        "checkpoint's folder) and `{target}` (the file to write) in it, such as `/opt/llama.cpp/venv/bin/python "
        "/opt/llama.cpp/convert_hf_to_gguf.py {source} --outfile {target} --outtype bf16`. No shell reads it.",
    )
    log_level: str = Field(default="INFO", description="Level of every process's log.")

    @field_validator("source_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return _split(value, ":")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """Set to nothing by accident, it must not open the server to everybody. Raises ValueError."""
        keys = _split(value, ",")
        if isinstance(keys, list):
            keys = [key.strip() for key in keys if key.strip()]
            if not keys:
                raise ValueError("it is set but holds no key; give one or more, or unset it to run without keys")
        return keys

    @field_validator("gguf_converter")
    @classmethod
    def _has_places(cls, value: str | None) -> str | None:
        if value is not None and not ("{source}" in value and "{target}" in value and shlex.split(value)):
            raise ValueError("the command must say {source} and {target}")
        return value

    @model_validator(mode="after")
    def _leases_outlast_heartbeats(self) -> Settings:
        if self.lease_seconds < 3 * self.heartbeat_seconds:
            raise ValueError(
                f"BITMILL_LEASE_SECONDS ({self.lease_seconds:g}) must be at least three times "
                f"BITMILL_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}): each heartbeat renews the lease"
            )
        return self

    def is_given(self, name: str | None) -> bool:
        """Whether an optional setting has a value; `name` None names none."""
        return name is not None and getattr(self, name) is not None

    @property
    def data_folder(self) -> Path:
        return self.data_dir.expanduser().resolve()

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_folder / 'bitmill.sqlite3'}"

    @property
    def broker(self) -> str:
        return self.broker_url or "filesystem://"

    @property
    def broker_folder(self) -> Path:
        return self.data_folder / "broker"

    @property
    def roots(self) -> tuple[Path, ...]:
        chosen = self.source_roots or (self.data_folder / "models",)
        return tuple(root.expanduser().resolve() for root in chosen)

    @property
    def engines_folder(self) -> Path:
        """An environment per engine that was installed beside this one."""
        return self.engines_dir.expanduser().resolve() if self.engines_dir else self.data_folder / "engines"

    @property
    def artifacts_folder(self) -> Path:
        return self.data_folder / "artifacts"

    @property
    def staging_folder(self) -> Path:
        return self.data_folder / "staging"

    @property
    def checkpoints_folder(self) -> Path:
        """What long jobs keep between attempts, in a folder per job."""
        return self.data_folder / "checkpoints"

    @property
    def sources_folder(self) -> Path:
        """Imported originals: downloads from the hub, unpacked archives and GGUF files."""
        return self.data_folder / "sources"

    @property
    def files_folder(self) -> Path:
        """Uploaded files, each under its id."""
        return self.data_folder / "files"

    @property
    def quarantine_folder(self) -> Path:
        """What the database does not know, moved here from the other folders."""
        return self.data_folder / "quarantine"

    @property
    def cache_folder(self) -> Path:
        return self.data_folder / "cache"

    @property
    def logs_folder(self) -> Path:
        return self.data_folder / "logs"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """For entry points alone: code takes a Settings argument. Ends the process where a setting is wrong.

    It says which: values, which may be secret, are not repeated."""
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit("\n".join(_line(each["loc"], each["msg"]) for each in error.errors())) from error


def _line(place: tuple[int | str, ...], problem: str) -> str:
    return f"BITMILL_{'.'.join(map(str, place)).upper()}: {problem.removeprefix('Value error, ')}"
