"""Writes into an artifact's folder what it is, before the folder is sealed."""

from __future__ import annotations

from pathlib import Path

from app.domain.cards import QUALITY, README, CardFacts, model_card, quality_json
from workers.child import Message


def write_card(folder: Path, facts: CardFacts) -> None:
    (folder / README).write_text(model_card(facts), encoding="utf-8")
    (folder / QUALITY).write_text(quality_json(facts), encoding="utf-8")


def report_facts(report: Message) -> Message:
    """What the report of a quantization or a training says for the card."""
    return {
        "parameter_count": report["parameter_count"],
        "bits_per_weight": report["weight_bytes"] * 8 / report["parameter_count"],
        "tensor_types": report["tensor_types"],
        "calibration": report.get("calibration"),
    }
