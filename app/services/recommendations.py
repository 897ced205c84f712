"""Recommendations: the rules for a device and a goal, checked against this model and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from app.domain.artifacts import ArtifactKind
from app.domain.errors import CorruptCheckpoint, IncompatibleModel, InvalidParameter, UnsupportedArchitecture
from app.domain.estimates import ModelShape, estimate_artifact, estimate_loaded
from app.domain.evaluation import EvaluationResult
from app.domain.hardware import Hardware
from app.domain.quantization.catalog import dump_method, parse_method
from app.domain.quantization.fitting import fit_groups
from app.domain.quantization.spec import MethodParams, MethodSpec
from app.domain.recommendation import (
    DEVICES,
    GPUS,
    Candidate,
    DeviceProfile,
    Measured,
    RecommendationRequest,
    caution_for,
    contract_verdict,
    profile_of,
    rank,
    rule_for,
)
from app.persistence.artifacts import ArtifactRepository
from app.persistence.tables import ArtifactRow
from app.persistence.unit_of_work import Database
from app.services.estimates import EstimateService
from app.services.workers import WorkerService
from app.storage.artifacts import locate
from app.storage.checkpoints import inspect_checkpoint

# Models of one architecture whose sizes differ by no more than this are of one size class.
SIZE_CLASS_FACTOR: Final = 2.0
AUTO: Final = "auto"


class RecommendationService:
    def __init__(self, database: Database, estimates: EstimateService, workers: WorkerService) -> None:
        self.database = database
        self.estimates = estimates
        self.workers = workers

    def recommend(self, request: RecommendationRequest) -> dict[str, Any]:
        """Raises InvalidParameter, NotFound, InvalidRequest or HubUnreachable."""
        profile = self._profile(request)
        model = self.estimates.shape_of(request.model)
        rule = rule_for(profile.kind, request.goal)
        candidates, left_out = self._candidates(request, profile, model, rule.methods)
        ranked, decided = rank(candidates, request.goal, request.contract)
        return {
            "object": "recommendation",
            "model": request.model,
            "device": {"name": request.device, "class": profile.kind.value, "memory_bytes": profile.memory_bytes},
            "goal": request.goal.value,
            "rule": {"reason": rule.reason, "source": rule.source},
            "decided_by": "measurements" if decided else "rule",
            "data": [_view(each, request, profile) for each in ranked],
            "left_out": left_out,
            "would_change": _would_change(ranked, profile, decided=decided),
        }

    def _profile(self, request: RecommendationRequest) -> DeviceProfile:
        if request.device == AUTO:
            found = self._of_workers()
        elif request.device in DEVICES:
            found = DEVICES[request.device]
        else:
            raise InvalidParameter(
                f"device {request.device!r} is unknown; use {AUTO}, {', '.join(DEVICES)}", param="device"
            )
        return DeviceProfile(found.kind, request.memory_bytes or found.memory_bytes)

    def _of_workers(self) -> DeviceProfile:
        machines = [profile_of(Hardware.model_validate(worker.hardware)) for worker in self.workers.live()]
        if not machines:
            raise InvalidParameter(
                f"device 'auto' needs a live worker to look at and there is none; start one with `bitmill worker`, or "
                f"name one of {', '.join(DEVICES)}",
                param="device",
            )
        return max(machines, key=lambda each: (each.kind in GPUS, each.memory_bytes or 0))

    def _candidates(
        self, request: RecommendationRequest, profile: DeviceProfile, model: ModelShape, methods: tuple[Any, ...]
    ) -> tuple[list[Candidate], list[dict[str, Any]]]:
        found: list[Candidate] = []
        left_out: list[dict[str, Any]] = []
        for place, method in enumerate(methods):
            try:
                found.append(self._candidate(request, profile, model, method, place))
            except (IncompatibleModel, UnsupportedArchitecture) as error:
                left_out.append({"method": method, "reason": error.message})
        return found, left_out

    def _candidate(
        self, request: RecommendationRequest, profile: DeviceProfile, model: ModelShape, method: dict[str, Any],
        place: int,
    ) -> Candidate:  # fmt: skip
        spec, params = fit_groups(method, {name: tensor.shape for name, tensor in model.tensors.items()})
        spec.require_architecture(model.architecture, widened=self.estimates.settings.is_given(spec.widened_by))
        weights = estimate_artifact(spec, params, model)
        loaded = estimate_loaded(
            spec, weights, model, context_length=request.context_length, concurrency=request.concurrency,
            on_gpu=profile.kind in GPUS,
        )  # fmt: skip
        limit = profile.memory_bytes
        return Candidate(
            method=dump_method(spec, params),
            place=place,
            weights_bytes=weights.total_bytes,
            memory_bytes=loaded.total_bytes,
            fits=None if limit is None else loaded.total_bytes <= limit,
            measured=self._measured(request, profile, model, spec, params),
        )

    def _measured(
        self, request: RecommendationRequest, profile: DeviceProfile, model: ModelShape, spec: MethodSpec,
        params: MethodParams,
    ) -> Measured | None:  # fmt: skip
        """Of this model where there is any, else of one of its architecture and size class on such a device."""
        with self.database.reading() as session:
            rows = list(ArtifactRepository(session).list())
        # A training's `method` is none of the catalog's.
        quantized = [row for row in rows if row.kind == ArtifactKind.QUANTIZED and row.evaluation]
        made = [row for row in quantized if _is_same(row, spec, params)]
        own = [row for row in made if row.source == request.model]
        others = [row for row in made if row.source in _relatives(rows, model, request, self.estimates)]
        for row in own:
            return _figures(row, profile, request, "this model")
        for row in others:
            found = _figures(row, profile, request, f"{row.source}, of the same architecture and size class")
            if found.decode_tokens_per_second is not None:  # on the same class of device
                return found
        return None


def _is_same(row: ArtifactRow, spec: MethodSpec, params: MethodParams) -> bool:
    made_by, made_with = parse_method(row.method or {})
    return made_by.name == spec.name and made_by.label(made_with) == spec.label(params)


def _relatives(
    rows: list[ArtifactRow], model: ModelShape, request: RecommendationRequest, estimates: EstimateService
) -> set[str]:
    return {name for name in _originals(rows, model, estimates) if name != request.model}


def _originals(rows: list[ArtifactRow], model: ModelShape, estimates: EstimateService) -> Iterator[str]:
    for row in rows:
        folder = locate(row, estimates.settings)
        if row.method is not None or not folder.is_dir():
            continue
        try:
            checkpoint = inspect_checkpoint(folder)
        except CorruptCheckpoint:  # the user's folder has changed since; it tells nothing any more
            continue
        ratio = checkpoint.weight_bytes / model.weight_bytes
        if checkpoint.architecture == model.architecture and 1 / SIZE_CLASS_FACTOR <= ratio <= SIZE_CLASS_FACTOR:
            yield row.name


def _figures(row: ArtifactRow, profile: DeviceProfile, request: RecommendationRequest, of: str) -> Measured:
    result = EvaluationResult.model_validate(row.evaluation)
    quality, ratio = result.quality, None
    if quality and quality.perplexity and quality.reference_perplexity:
        ratio = quality.perplexity.value / quality.reference_perplexity.value
    return Measured(
        of=f"{of} ({row.name})",
        kl_divergence=quality.kl_divergence.mean.value if quality and quality.kl_divergence else None,
        perplexity_ratio=ratio,
        top1_agreement=quality.top1_agreement.value if quality and quality.top1_agreement else None,
        decode_tokens_per_second=_decode_rate(result, profile, request.concurrency),
    )


def _decode_rate(result: EvaluationResult, profile: DeviceProfile, concurrency: int) -> float | None:
    """At the measured number of requests nearest to what is asked for; None from another class of device."""
    if result.serving is None or result.hardware is None:
        return None
    if profile_of(Hardware.model_validate(result.hardware)).kind is not profile.kind:
        return None
    known = [each for each in result.serving.speed if each.decode_tokens_per_second]
    nearest = min(known, key=lambda each: abs(each.requests - concurrency), default=None)
    return nearest.decode_tokens_per_second if nearest else None


def _view(candidate: Candidate, request: RecommendationRequest, profile: DeviceProfile) -> dict[str, Any]:
    meets, broken = contract_verdict(candidate, request.contract)
    measured = candidate.measured
    return {
        "method": candidate.method,
        "weights_bytes": candidate.weights_bytes,
        "memory_bytes": candidate.memory_bytes,
        "fits": candidate.fits,
        "basis": f"measured on {measured.of}" if measured else f"choice {candidate.place + 1} of the rule",
        "measured": None if measured is None else {
            "kl_divergence": measured.kl_divergence,
            "perplexity_ratio": measured.perplexity_ratio,
            "top1_agreement": measured.top1_agreement,
            "decode_tokens_per_second": measured.decode_tokens_per_second,
        },
        "meets_contract": meets,
        "broken_terms": broken,
        "caution": caution_for(profile.kind, candidate.method["type"], request.concurrency),
    }  # fmt: skip


def _would_change(ranked: list[Candidate], profile: DeviceProfile, *, decided: bool) -> list[str]:
    """In words, what another answer would take."""
    found = []
    tight = [each for each in ranked if each.fits is False]
    if tight:
        needed = min(each.memory_bytes for each in tight)
        found.append(
            f"{len(tight)} of {len(ranked)} methods do not fit into {profile.memory_bytes} bytes; from {needed} bytes "
            f"on, or with a shorter context_length or less concurrency, the first of them does"
        )
    if profile.memory_bytes is None:
        found.append("the device's memory is not known; give memory_bytes to rule out what does not fit")
    if not decided:
        found.append("measurements of two or more of these methods (POST /v1/evaluations) would override the rule")
    return found
