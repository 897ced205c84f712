"""Which method for which device and goal: the rules as data, each with its source; measurements override them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, Field

from app.domain.contract import Contract, broken_terms, unknown_terms
from app.domain.evaluation import Name
from app.domain.hardware import Hardware

GIB: Final = 1024**3


class Goal(StrEnum):
    QUALITY = "quality"
    SPEED = "speed"
    SIZE = "size"
    FINETUNE = "finetune"


class DeviceClass(StrEnum):
    CPU = "cpu"
    APPLE = "apple"
    CONSUMER = "consumer GPU"
    DATACENTER = "data-centre GPU"
    HOPPER = "H100 class"  # has FP8 tensor cores of its own, and the memory to feed them


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """`memory_bytes` None: it differs from machine to machine and has to be given."""

    kind: DeviceClass
    memory_bytes: int | None = None


# Memory by the makers' data sheets.
DEVICES: Final[dict[str, DeviceProfile]] = {
    "cpu": DeviceProfile(DeviceClass.CPU),
    "apple": DeviceProfile(DeviceClass.APPLE),
    "rtx-3060": DeviceProfile(DeviceClass.CONSUMER, 12 * GIB),
    "rtx-3090": DeviceProfile(DeviceClass.CONSUMER, 24 * GIB),
    "rtx-4090": DeviceProfile(DeviceClass.CONSUMER, 24 * GIB),
    "rtx-5090": DeviceProfile(DeviceClass.CONSUMER, 32 * GIB),
    "t4": DeviceProfile(DeviceClass.DATACENTER, 16 * GIB),
    "a10": DeviceProfile(DeviceClass.DATACENTER, 24 * GIB),
    "a100": DeviceProfile(DeviceClass.DATACENTER, 80 * GIB),
    "h100": DeviceProfile(DeviceClass.HOPPER, 80 * GIB),
    "h200": DeviceProfile(DeviceClass.HOPPER, 141 * GIB),
}
HOPPER_CAPABILITY: Final = (9, 0)
CONSUMER_NAMES: Final = ("geforce", "rtx", "titan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`methods` from the first choice on, for these classes of devices and these goals."""

    devices: frozenset[DeviceClass]
    goals: frozenset[Goal]
    methods: tuple[dict[str, Any], ...]
    reason: str
    source: str


def _gguf(mix: str) -> dict[str, Any]:
    return {"type": "gguf", "quantization": mix}


NF4: Final = {"type": "bitsandbytes", "quantization": "nf4", "double_quant": True}
GPUS: Final = frozenset({DeviceClass.CONSUMER, DeviceClass.DATACENTER, DeviceClass.HOPPER})
HOSTS: Final = frozenset({DeviceClass.CPU, DeviceClass.APPLE})
EVERYWHERE: Final = frozenset(DeviceClass)

RULES: Final[tuple[Rule, ...]] = (
    Rule(
        devices=EVERYWHERE, goals=frozenset({Goal.FINETUNE}),
        methods=(NF4, {"type": "bitsandbytes", "quantization": "int8"}),
        reason="QLoRA trains adapters on a frozen NF4 base and keeps the task performance of 16-bit fine-tuning",
        source="https://arxiv.org/abs/2305.14314",
    ),
    Rule(
        devices=HOSTS, goals=frozenset({Goal.SPEED}),
        methods=(_gguf("Q4_K_M"), _gguf("Q5_K_M"), _gguf("Q8_0")),
        reason="llama.cpp generates faster the fewer bytes the weights have, down to Q4_K_M",
        source="https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md",
    ),
    Rule(
        devices=HOSTS, goals=frozenset({Goal.QUALITY}),
        methods=(_gguf("Q5_K_M"), _gguf("Q4_K_M"), _gguf("Q8_0")),
        reason="Q5_K_M has two thirds of the bytes of Q8_0, at a KL divergence of 0.01 nats for Llama 3 8B",
        source="https://github.com/ggml-org/llama.cpp/pull/6936",
    ),
    Rule(
        devices=HOSTS, goals=frozenset({Goal.SIZE}),
        methods=(_gguf("Q4_K_M"), _gguf("IQ4_XS"), _gguf("Q3_K_M")),
        reason="below four bits quality falls off: Llama 3 8B has 1.03 times its perplexity at Q4_K_M, 1.56 at Q2_K",
        source="https://github.com/ggml-org/llama.cpp/pull/6936",
    ),
    Rule(
        devices=frozenset({DeviceClass.CONSUMER}), goals=frozenset({Goal.SPEED}),
        methods=({"type": "gptq", "bits": 4}, NF4, {"type": "awq"}),
        reason="single requests are bound by reading weights: GPTQ reports 4.5 times the speed of 16 bits on an A6000",
        source="https://arxiv.org/abs/2210.17323",
    ),
    Rule(
        devices=frozenset({DeviceClass.CONSUMER}), goals=frozenset({Goal.QUALITY, Goal.SIZE}),
        methods=(NF4, {"type": "gptq", "bits": 4}, {"type": "awq"}),
        reason="NF4 fits where memory is short: a quarter of 16 bits, and no calibration data",
        source="https://arxiv.org/abs/2305.14314",
    ),
    Rule(
        devices=frozenset({DeviceClass.DATACENTER}), goals=frozenset({Goal.SPEED, Goal.QUALITY, Goal.SIZE}),
        methods=({"type": "awq"}, {"type": "gptq", "bits": 4}, {"type": "int8"}, {"type": "none", "dtype": "bf16"}),
        reason="kernels for AWQ's and GPTQ's layouts keep near four times the speed of 16 bits up to 16 to 32 requests",
        source="https://arxiv.org/abs/2408.11743",
    ),
    Rule(
        devices=frozenset({DeviceClass.HOPPER}), goals=frozenset({Goal.SPEED, Goal.QUALITY, Goal.SIZE}),
        methods=({"type": "fp8"}, {"type": "awq"}, {"type": "gptq", "bits": 4}, {"type": "none", "dtype": "bf16"}),
        reason="FP8 halves the memory of 16 bits and serves up to 1.6 times the throughput at minimal loss",
        source="https://docs.vllm.ai/en/stable/features/quantization/fp8/",
    ),
)  # fmt: skip

# From so many requests at a time decoding is bound by arithmetic rather than by reading weights.
HIGH_CONCURRENCY: Final = 32
WEIGHT_ONLY: Final = frozenset({"awq", "gptq", "int4", "hqq", "autoround", "bitsandbytes", "fp4", "qat"})
CAUTION: Final = (
    "4-bit weight-only formats unpack weights at every step: from some 32 requests at a time on even kernels made for "
    "it gain less and less (https://arxiv.org/abs/2408.11743), and others can be slower than bf16 on such a GPU; "
    "measure with `bitmill compare`"
)


class RecommendationRequest(BaseModel, extra="forbid", frozen=True):
    """The body of POST /v1/recommendations."""

    model: Name
    device: str = Field(default="auto", description=f"auto (this installation's workers), {', '.join(DEVICES)}.")
    memory_bytes: int | None = Field(default=None, gt=0, description="In place of the device's own.")
    goal: Goal = Goal.QUALITY
    context_length: int = Field(default=4096, ge=64, le=10_000_000)
    concurrency: int = Field(default=1, ge=1, le=1024)
    contract: Contract = Contract()


def rule_for(kind: DeviceClass, goal: Goal) -> Rule:
    """Every pair has one, which a test sees to."""
    return next(rule for rule in RULES if kind in rule.devices and goal in rule.goals)


def profile_of(hardware: Hardware) -> DeviceProfile:
    """What a worker's machine counts as: its largest GPU, else its processor."""
    gpu = max(hardware.gpus, key=lambda each: each.memory_bytes, default=None)
    if gpu is None:
        return DeviceProfile(DeviceClass.CPU, hardware.memory_bytes)
    if any(word in gpu.name.lower() for word in CONSUMER_NAMES):
        return DeviceProfile(DeviceClass.CONSUMER, gpu.memory_bytes)
    kind = DeviceClass.HOPPER if gpu.compute_capability >= HOPPER_CAPABILITY else DeviceClass.DATACENTER
    return DeviceProfile(kind, gpu.memory_bytes)


def caution_for(kind: DeviceClass, method: str, concurrency: int) -> str | None:
    slow = kind in (DeviceClass.DATACENTER, DeviceClass.HOPPER) and method in WEIGHT_ONLY
    return CAUTION if slow and concurrency >= HIGH_CONCURRENCY else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of a candidate from measurements; `of` says which model's and where."""

    of: str
    kl_divergence: float | None = None
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None
    decode_tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """`place` is its rank by the rule, 0 first. `fits` None: the device's memory is not known."""

    method: dict[str, Any]
    place: int
    weights_bytes: int
    memory_bytes: int
    fits: bool | None
    measured: Measured | None = None


def contract_verdict(candidate: Candidate, contract: Contract) -> tuple[bool | None, list[str]]:
    """True, False or None (a term was not measured), and the terms that are broken, in words."""
    measured = candidate.measured or Measured(of="")
    values = {
        "kl_divergence": measured.kl_divergence,
        "perplexity_ratio": measured.perplexity_ratio,
        "top1_agreement": measured.top1_agreement,
        "memory_bytes": candidate.memory_bytes,
        "size_bytes": candidate.weights_bytes,
        "decode_tokens_per_second": measured.decode_tokens_per_second,
    }
    broken = broken_terms(contract, values)
    return (False if broken else None if unknown_terms(contract, values) else True), broken


def rank(candidates: Iterable[Candidate], goal: Goal, contract: Contract) -> tuple[list[Candidate], bool]:
    """Best first, and whether measurements rather than the rule decided.

    What does not fit or breaks the contract comes last. Where two or more were measured in what the goal asks for,
    those come in the order of the measurement, before what was not measured.
    """
    found = list(candidates)
    figures = {id(each): _figure(each, goal) for each in found}
    decided = sum(figure is not None for figure in figures.values()) > 1

    def order(each: Candidate) -> tuple[bool, bool, bool, float, int]:
        figure = figures[id(each)] if decided else None
        refused = contract_verdict(each, contract)[0] is False
        return (each.fits is False, refused, decided and figure is None, figure or 0.0, each.place)

    return sorted(found, key=order), decided


def _figure(candidate: Candidate, goal: Goal) -> float | None:
    """What the goal asks for, smaller is better."""
    measured = candidate.measured
    if goal is Goal.SIZE:
        return float(candidate.weights_bytes) if measured is not None else None
    if measured is None or goal is Goal.FINETUNE:
        return None
    if goal is Goal.QUALITY:
        return measured.kl_divergence
    rate = measured.decode_tokens_per_second
    return -rate if rate is not None else None
