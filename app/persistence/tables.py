"""The tables. Times are seconds since the epoch, UTC; JSON columns hold plain values."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.domain.artifacts import Gate

# SQLite gives automatic numbers to INTEGER PRIMARY KEY only.
AutoId = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class InstallationRow(Base):
    """One row: the id that this database shares with its data folder."""

    __tablename__ = "installation"

    # Always 1, so that there cannot be a second row.
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float(53))


class JobRow(Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_state_created_at", "state", "created_at"),
        Index("ix_jobs_created_at_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    queue: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(512), index=True)
    method: Mapped[dict[str, Any]] = mapped_column(JSON)
    suffix: Mapped[str | None] = mapped_column(String(64))
    gate: Mapped[str] = mapped_column(String(8), default=Gate.ON, server_default=Gate.ON)
    # `metadata` is taken by SQLAlchemy's declarative base.
    user_metadata: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    created_at: Mapped[float] = mapped_column(Float(53))
    started_at: Mapped[float | None] = mapped_column(Float(53))
    finished_at: Mapped[float | None] = mapped_column(Float(53))
    # The fencing token: raised by each claim, demanded by each write of the worker that claimed.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)
    worker_id: Mapped[str | None] = mapped_column(String(128))
    lease_expires_at: Mapped[float | None] = mapped_column(Float(53))
    dispatched_at: Mapped[float | None] = mapped_column(Float(53))
    fraction: Mapped[float] = mapped_column(Float(53), default=0.0)
    stage: Mapped[str | None] = mapped_column(String(64))
    eta_seconds: Mapped[float | None] = mapped_column(Float(53))
    artifact_id: Mapped[str | None] = mapped_column(String(64))
    quantized_model: Mapped[str | None] = mapped_column(String(700))
    quality: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    reused: Mapped[bool] = mapped_column(default=False)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # What a job of another kind than quantization was asked for, and what it found.
    request: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # Of quantization jobs: what was expected of it at its start, and what it took.
    predicted: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    actual: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class JobEventRow(Base):
    __tablename__ = "job_events"

    id: Mapped[int] = mapped_column(AutoId, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[float] = mapped_column(Float(53))
    type: Mapped[str] = mapped_column(String(16))  # state | progress | message | metrics | checkpoint
    level: Mapped[str] = mapped_column(String(8))  # info | warn | error
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)


class ArtifactRow(Base):
    __tablename__ = "artifacts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(700), unique=True)
    kind: Mapped[str] = mapped_column(String(16))
    format: Mapped[str] = mapped_column(String(16))
    # Where its files lie: below the artifacts folder for quantized models, absolute for originals.
    path: Mapped[str] = mapped_column(String(4096))
    source: Mapped[str | None] = mapped_column(String(512))
    source_fingerprint: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(64), index=True)
    method: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    suffix: Mapped[str | None] = mapped_column(String(64))
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    parameter_count: Mapped[int] = mapped_column(BigInteger)
    bits_per_weight: Mapped[float] = mapped_column(Float(53))
    tensor_types: Mapped[dict[str, int]] = mapped_column(JSON)
    manifest_sha256: Mapped[str] = mapped_column(String(64))
    calibration: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    quality: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    seconds: Mapped[float | None] = mapped_column(Float(53))
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    created_at: Mapped[float] = mapped_column(Float(53))
    # The newest evaluation's result, of which `quality` is not a part: that was measured before publication.
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class FileRow(Base):
    __tablename__ = "files"
    __table_args__ = (Index("ix_files_created_at_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float(53))


class ComparisonRow(Base):
    """Jobs that belong together. `outcome` is null until nothing of it is left to do."""

    __tablename__ = "comparisons"
    __table_args__ = (Index("ix_comparisons_created_at_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(512), index=True)
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Where its models are evaluated.
    queue: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[str | None] = mapped_column(String(16), index=True)
    created_at: Mapped[float] = mapped_column(Float(53))
    finished_at: Mapped[float | None] = mapped_column(Float(53))


class ComparedRow(Base):
    """One line of a comparison. Jobs are not referenced by key: they may be gone before it."""

    __tablename__ = "comparison_rows"

    comparison_id: Mapped[str] = mapped_column(ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    # As it was asked for, and with every default once its job is there; null for the original.
    method: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    queue: Mapped[str] = mapped_column(String(16))
    quantization_job_id: Mapped[str | None] = mapped_column(String(64))
    evaluation_job_id: Mapped[str | None] = mapped_column(String(64))
    settled: Mapped[bool] = mapped_column(default=False)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)


class DeploymentRow(Base):
    """How a model is to be served, as asked for. Whether it is loaded, the serving host knows."""

    __tablename__ = "deployments"

    model: Mapped[str] = mapped_column(String(700), primary_key=True)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Float(53))


class WorkerRow(Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(128), primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    # Process id and start time, which tell a dead process from a new one with its number.
    pid: Mapped[int] = mapped_column(Integer)
    process_started_at: Mapped[float] = mapped_column(Float(53))
    queues: Mapped[list[str]] = mapped_column(JSON)
    hardware: Mapped[dict[str, Any]] = mapped_column(JSON)
    # Method name → null where it can run, else what to install.
    methods: Mapped[dict[str, str | None]] = mapped_column(JSON)
    version: Mapped[str] = mapped_column(String(32))
    started_at: Mapped[float] = mapped_column(Float(53))
    heartbeat_at: Mapped[float] = mapped_column(Float(53), index=True)
    stopped_at: Mapped[float | None] = mapped_column(Float(53))
    current_job_id: Mapped[str | None] = mapped_column(String(64))
