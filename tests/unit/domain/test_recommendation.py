"""The rules, one line after the other, and how measurements override them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from app.domain.hardware import Gpu, Hardware
from app.domain.quantization.catalog import parse_method
from app.domain.recommendation import (
    DEVICES,
    RULES,
    Candidate,
    Contract,
    DeviceClass,
    Goal,
    Measured,
    caution_for,
    contract_verdict,
    profile_of,
    rank,
    rule_for,
)


def first(device: str, goal: Goal) -> dict[str, Any]:
    return rule_for(DEVICES[device].kind, goal).methods[0]


def test_every_device_and_goal_has_a_rule_with_its_source() -> None:
    for kind, goal in itertools.product(DeviceClass, Goal):
        assert rule_for(kind, goal).source.startswith("https://")
    for method in itertools.chain.from_iterable(rule.methods for rule in RULES):
        parse_method(method)  # raises for what does not exist


@pytest.mark.parametrize("device", ["cpu", "apple"])
def test_processors_get_gguf(device: str) -> None:
    assert first(device, Goal.SPEED) == {"type": "gguf", "quantization": "Q4_K_M"}
    assert first(device, Goal.QUALITY) == {"type": "gguf", "quantization": "Q5_K_M"}


def test_consumer_gpus_get_nf4_or_gptq() -> None:
    assert first("rtx-4090", Goal.QUALITY)["quantization"] == "nf4"
    assert first("rtx-4090", Goal.SPEED)["type"] == "gptq"


def test_data_centre_gpus_get_awq_then_gptq() -> None:
    methods = rule_for(DEVICES["a100"].kind, Goal.SPEED).methods
    assert [method["type"] for method in methods[:2]] == ["awq", "gptq"]


def test_the_h100_class_gets_fp8() -> None:
    assert first("h100", Goal.SPEED)["type"] == first("h200", Goal.QUALITY)["type"] == "fp8"


@pytest.mark.parametrize("device", DEVICES)
def test_fine_tuning_gets_nf4_everywhere(device: str) -> None:
    assert first(device, Goal.FINETUNE)["quantization"] == "nf4"


def test_four_bits_are_cautioned_against_at_high_concurrency_on_a_data_centre_gpu() -> None:
    assert caution_for(DeviceClass.DATACENTER, "awq", 64) is not None
    assert caution_for(DeviceClass.DATACENTER, "awq", 1) is None
    assert caution_for(DeviceClass.DATACENTER, "none", 64) is None
    assert caution_for(DeviceClass.CPU, "awq", 64) is None


def test_a_workers_machine_is_classed() -> None:
    def machine(name: str, capability: tuple[int, int]) -> DeviceClass:
        gpu = Gpu(name=name, memory_bytes=80, compute_capability=capability)
        return profile_of(Hardware(hostname="", processor="", cores=2, memory_bytes=8, gpus=(gpu,))).kind

    assert profile_of(Hardware(hostname="", processor="", cores=2, memory_bytes=8)).kind is DeviceClass.CPU
    assert machine("NVIDIA H100 80GB HBM3", (9, 0)) is DeviceClass.HOPPER
    assert machine("NVIDIA A100-SXM4-80GB", (8, 0)) is DeviceClass.DATACENTER
    assert machine("NVIDIA GeForce RTX 5090", (12, 0)) is DeviceClass.CONSUMER


def candidate(place: int, *, fits: bool | None = True, **measured: float) -> Candidate:
    found = Measured(of="this model", **measured) if measured else None
    return Candidate(method={}, place=place, weights_bytes=100, memory_bytes=200, fits=fits, measured=found)


NO_TERMS = Contract()


def places(candidates: list[Candidate], goal: Goal = Goal.QUALITY, contract: Contract = NO_TERMS) -> list[int]:
    return [each.place for each in rank(candidates, goal, contract)[0]]


def test_without_measurements_the_rule_decides_and_what_does_not_fit_comes_last() -> None:
    ranked, decided = rank([candidate(0, fits=False), candidate(1), candidate(2)], Goal.QUALITY, Contract())
    assert ([each.place for each in ranked], decided) == ([1, 2, 0], False)


def test_two_measurements_override_the_rule() -> None:
    measured = [candidate(0, kl_divergence=0.3), candidate(1), candidate(2, kl_divergence=0.1)]
    assert places(measured) == [2, 0, 1]
    assert rank(measured, Goal.QUALITY, Contract())[1]
    rates = [candidate(0, decode_tokens_per_second=10.0), candidate(1, decode_tokens_per_second=20.0)]
    assert places(rates, Goal.SPEED) == [1, 0]


def test_one_measurement_alone_says_nothing_about_the_others() -> None:
    assert places([candidate(0), candidate(1, kl_divergence=0.1)]) == [0, 1]


def test_what_breaks_the_contract_comes_after_what_may_meet_it() -> None:
    contract = Contract(max_kl_divergence=0.2)
    broken, unknown, met = candidate(0, kl_divergence=0.3), candidate(1), candidate(2, kl_divergence=0.1)
    assert [contract_verdict(each, contract)[0] for each in (broken, unknown, met)] == [False, None, True]
    assert contract_verdict(broken, contract)[1] == ["max_kl_divergence is 0.2, and it has 0.3"]
    assert places([broken, unknown, met], contract=contract) == [2, 1, 0]
