"""Every error that Bitmill raises on purpose.

BitmillError
├── WrongInstallation              this database and this data folder do not belong together; no process starts
├── InvalidRequest                 the request is wrong: change it
│   ├── UnknownMethod
│   ├── InvalidParameter
│   ├── InvalidModelName
│   ├── PathOutsideRoots
│   ├── UnsupportedField
│   ├── PickleCheckpoint
│   ├── CorruptCheckpoint
│   ├── BrokenSource               a model that predicts text no better than guessing
│   ├── UnsupportedArchitecture
│   ├── IncompatibleModel          the method cannot take a tensor of this shape
│   ├── UploadTooLarge
│   ├── BodyTooLarge               the body of any other request
│   ├── HeadersTooLarge
│   ├── UnsafeArchive              an entry of an uploaded archive must not be unpacked
│   └── ContextLengthExceeded
├── AuthenticationFailed
├── NotFound
│   ├── ModelNotFound
│   ├── JobNotFound
│   ├── ComparisonNotFound
│   ├── SourceNotFound
│   └── FileNotFound
├── Conflict                       the request is right, the moment is wrong
│   ├── IllegalTransition
│   ├── MethodUnavailable
│   ├── NoWorkerAvailable          the workers that are there lack the device that was asked for
│   ├── ModelInUse
│   └── FileInUse
├── TooManyRequests                come again when Retry-After has passed
├── InsufficientResources
│   ├── DiskFull
│   └── InsufficientMemory
├── UpstreamFailed                 something that Bitmill stands on failed
│   ├── DatabaseUnavailable
│   ├── HubUnreachable
│   ├── ServingUnavailable
│   ├── EngineFailed
│   └── EngineTimeout
└── JobFailed                      the work itself went wrong
    ├── WorkerLost
    ├── JobProcessCrashed
    ├── QuantizationFailed
    ├── EvaluationFailed
    ├── TrainingFailed
    ├── QualityGateFailed
    └── ContractUnsatisfiable      no candidate meets every term; `details` has what was found

Each class has a stable `code`, which clients may compare; messages are for people and may change.
`app.domain.http_status` holds the one table from these classes to HTTP statuses.
"""

from __future__ import annotations

import errno
from typing import Any, ClassVar


class BitmillError(Exception):
    """Base of the tree. `param` names the request field at fault, if one is."""

    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP answer says of it beside the body."""
        return {}

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error object: all four fields, always."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class WrongInstallation(BitmillError):
    code = "wrong_installation"


class InvalidRequest(BitmillError):
    code = "invalid_request"
    type = "invalid_request_error"


class UnknownMethod(InvalidRequest):
    code = "unknown_method"


class InvalidParameter(InvalidRequest):
    code = "invalid_parameter"


class InvalidModelName(InvalidRequest):
    code = "invalid_model_name"


class PathOutsideRoots(InvalidRequest):
    code = "path_outside_roots"


class UnsupportedField(InvalidRequest):
    code = "unsupported_field"


class PickleCheckpoint(InvalidRequest):
    code = "pickle_checkpoint"


class CorruptCheckpoint(InvalidRequest):
    code = "corrupt_checkpoint"


class BrokenSource(InvalidRequest):
    code = "broken_source"


class UnsupportedArchitecture(InvalidRequest):
    code = "unsupported_architecture"


class IncompatibleModel(InvalidRequest):
    code = "incompatible_model"


class UploadTooLarge(InvalidRequest):
    code = "upload_too_large"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class HeadersTooLarge(InvalidRequest):
    code = "headers_too_large"


class UnsafeArchive(InvalidRequest):
    code = "unsafe_archive"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class AuthenticationFailed(BitmillError):
    code = "invalid_api_key"
    type = "authentication_error"


class NotFound(BitmillError):
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class ComparisonNotFound(NotFound):
    code = "comparison_not_found"


class SourceNotFound(NotFound):
    code = "source_not_found"


class FileNotFound(NotFound):
    code = "file_not_found"


class Conflict(BitmillError):
    code = "conflict"
    type = "invalid_request_error"


class IllegalTransition(Conflict):
    code = "illegal_transition"


class MethodUnavailable(Conflict):
    code = "method_unavailable"


class NoWorkerAvailable(Conflict):
    code = "no_worker_available"


class ModelInUse(Conflict):
    code = "model_in_use"


class FileInUse(Conflict):
    code = "file_in_use"


class TooManyRequests(BitmillError):
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_seconds: int = 1) -> None:
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_seconds)}


class InsufficientResources(BitmillError):
    code = "insufficient_resources"
    type = "insufficient_resources_error"


class DiskFull(InsufficientResources):
    code = "disk_full"

    @classmethod
    def from_os_error(cls, error: OSError) -> DiskFull | None:
        """The error for a write that found no room (disk, quota or file size limit); None for any other."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return None
        place = f" while writing {error.filename!r}" if error.filename else ""
        return cls(
            f"no room was left{place} ({error.strerror}); delete models (DELETE /v1/models/…) or set "
            f"BITMILL_DATA_DIR to a larger disk, then submit the job again"
        )


class InsufficientMemory(InsufficientResources):
    code = "insufficient_memory"


class UpstreamFailed(BitmillError):
    code = "upstream_failed"


class DatabaseUnavailable(UpstreamFailed):
    code = "database_unavailable"

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": "1"}


class HubUnreachable(UpstreamFailed):
    code = "hub_unreachable"


class ServingUnavailable(UpstreamFailed):
    code = "serving_unavailable"


class EngineFailed(UpstreamFailed):
    code = "engine_failed"


class EngineTimeout(UpstreamFailed):
    code = "engine_timeout"


class JobFailed(BitmillError):
    code = "job_failed"


class WorkerLost(JobFailed):
    code = "worker_lost"


class JobProcessCrashed(JobFailed):
    code = "job_process_crashed"


class QuantizationFailed(JobFailed):
    code = "quantization_failed"


class EvaluationFailed(JobFailed):
    code = "evaluation_failed"


class TrainingFailed(JobFailed):
    code = "training_failed"


class QualityGateFailed(JobFailed):
    code = "quality_gate_failed"


class ContractUnsatisfiable(JobFailed):
    """`details` tells what was tried, what it measured, and which terms it broke."""

    code = "contract_unsatisfiable"

    def __init__(self, message: str, *, param: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message, param=param)
        self.details = details or {}

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"details": self.details}
