"""Plots whose labels can be read."""

from __future__ import annotations

import random
from xml.etree import ElementTree as ET

import pytest

from app.services.reports.plots import CHARACTER_PIXELS, FRAME, Box, Dot, bars, nice_ticks, place_label, scatter

NAMES = ("original", "fp16", "bf16", "bnb-int8", "bnb-nf4", "gptq-4bit-g64", "awq-4bit-g64", "gguf-Q4_K_M", "fp8")


def dot(label: str, x: float, y: float) -> Dot:
    return Dot(label=label, x=x, y=y, error=y / 20, on_front=True)


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [
        (6.0, [0, 1, 2, 3, 4, 5, 6]),
        (272.0, [0, 50, 100, 150, 200, 250, 300]),
        (0.09, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (0.0, [0, 1]),
    ],
)
def test_ticks_are_round_and_reach_beyond_the_highest(highest: float, ticks: list[float]) -> None:
    assert nice_ticks(highest) == pytest.approx(ticks)


@pytest.mark.parametrize("seed", range(20))
def test_labels_overlap_neither_each_other_nor_the_frame(seed: int) -> None:
    numbers = random.Random(seed)
    # As figures lie: several at the bottom, close to each other.
    dots = [dot(name, numbers.choice([105, 115, 160, 270]), numbers.choice([0, 0, 0.001, 0.1])) for name in NAMES]
    boxes = label_boxes(scatter(dots, title="t", x_title="x", y_title="y"))
    assert len(boxes) == len(NAMES)
    assert all(box.is_inside(FRAME) for box in boxes)
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


def label_boxes(svg: str) -> list[Box]:
    found = []
    for text in ET.fromstring(svg).iter("text"):  # noqa: S314 -- our own text
        if text.get("class") == "label":
            left, base = float(text.get("x", "")), float(text.get("y", ""))
            found.append(Box(left, base - 12, left + len(text.text or "") * CHARACTER_PIXELS, base + 3))
    return found


def test_a_label_finds_its_place_beside_the_dot() -> None:
    box = place_label("fp8", 300, 200, [])
    assert box.left > 300
    assert box.top < 200 < box.bottom


def test_lines_that_lead_to_labels_cross_no_label() -> None:
    """Five dots on one place: what the demo model's casts and the original look like."""
    svg = scatter([dot(name, 270, 0.0005) for name in NAMES[:5]], title="t", x_title="x", y_title="y")
    boxes = label_boxes(svg)
    for line in ET.fromstring(svg).iter("line"):  # noqa: S314 -- our own text
        if line.get("class") == "leader":
            x1, y1, x2, y2 = (float(line.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
            middle = ((x1 + x2) / 2, (y1 + y2) / 2)
            assert not any(box.holds(*middle) for box in boxes)


def test_what_is_shown_is_escaped() -> None:
    name = '<script>"&'
    for svg in (
        scatter([dot(name, 1, 1)], title=name, x_title=name, y_title=name),
        bars([(name, 3.0)], title=name, x_title=name),
    ):
        assert "<script" not in svg
        texts = [text.text for text in ET.fromstring(svg).iter("text")]  # noqa: S314 -- our own text
        assert texts.count(name) >= 2


def test_axes_say_their_units_and_bars_their_values() -> None:
    svg = bars([("a", 1234.0), ("b", 12.0)], title="t", x_title="memory (MB)")
    assert "memory (MB)" in svg
    assert ">1,234<" in svg
