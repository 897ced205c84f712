"""Scatter plots and bars as inline SVG. Colours come from the page's style sheet, so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 430
LEFT, RIGHT, TOP, BOTTOM = 74, 24, 18, 52
LABEL_PIXELS: Final = 12
# Of the page's font at that size, rather too wide than too narrow.
CHARACTER_PIXELS: Final = 6.9
# Kept free on either side of a label.
LABEL_GAP: Final = 3.0
TICKS: Final = 6
BAR_PIXELS: Final = 26
# Degrees clockwise from the right, in which labels are looked for: beside a dot first.
ANGLES: Final = (0, 180, -45, 45, -135, 135, -90, 90, *(angle for angle in range(-165, 180, 15) if angle % 45))
# Points at which a line is looked at for what it crosses.
LINE_STEPS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point of a plot; `error` is the standard error of `y`."""

    label: str
    x: float
    y: float
    error: float
    on_front: bool


@dataclass(frozen=True, slots=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, x: float, y: float) -> bool:
        return self.left < x < self.right and self.top < y < self.bottom

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to another."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def is_inside(self, other: Box) -> bool:
        wide = other.left <= self.left and self.right <= other.right
        return wide and other.top <= self.top and self.bottom <= other.bottom


FRAME: Final = Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)


def nice_ticks(highest: float, count: int = TICKS) -> list[float]:
    """From 0 to the first round number that is no less than `highest`, in steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def scatter(dots: Sequence[Dot], *, title: str, x_title: str, y_title: str) -> str:
    """Both axes begin at 0. Dots on the front are filled, and every dot has its label beside it."""
    x_ticks = nice_ticks(max(dot.x for dot in dots))
    y_ticks = nice_ticks(max(dot.y + dot.error for dot in dots))
    places = [(_x(dot.x, x_ticks), _y(dot.y, y_ticks)) for dot in dots]
    parts = [_axes(x_ticks, y_ticks, x_title, y_title)]
    # Those on the front last: where dots lie on each other, theirs is seen.
    for dot, (x, y) in sorted(zip(dots, places, strict=True), key=lambda pair: pair[0].on_front):
        parts.append(_error_bar(x, _y(dot.y - dot.error, y_ticks), _y(dot.y + dot.error, y_ticks)))
        parts.append(f'<circle class="{"front" if dot.on_front else "dot"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    parts += _labels([dot.label for dot in dots], places)
    return _svg(WIDTH, HEIGHT, title, parts)


def _x(value: float, ticks: Sequence[float]) -> float:
    return LEFT + value / ticks[-1] * (FRAME.right - LEFT)


def _y(value: float, ticks: Sequence[float]) -> float:
    return FRAME.bottom - max(value, 0.0) / ticks[-1] * (FRAME.bottom - TOP)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x_title: str, y_title: str) -> str:
    parts = []
    for tick in x_ticks:
        x = _x(tick, x_ticks)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{FRAME.bottom}"/>')
        parts.append(_text(x, FRAME.bottom + 18, number(tick, x_ticks), "middle"))
    for tick in y_ticks:
        y = _y(tick, y_ticks)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{FRAME.right}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, number(tick, y_ticks), "end"))
    parts.append(_text((LEFT + FRAME.right) / 2, HEIGHT - 10, x_title, "middle", "title"))
    middle = (TOP + FRAME.bottom) / 2
    turned = f'transform="rotate(-90 16 {middle:.1f})"'
    parts.append(f'<text class="title" x="16" y="{middle:.1f}" text-anchor="middle" {turned}>{escape(y_title)}</text>')
    return "".join(parts)


def number(value: float, ticks: Sequence[float]) -> str:
    """With as many digits as tell one tick from the next."""
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}"


def _error_bar(x: float, low: float, high: float) -> str:
    if low - high < 1:
        return ""
    return f'<path class="error" d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"/>'


def _labels(labels: Sequence[str], places: Sequence[tuple[float, float]]) -> list[str]:
    """Beside its dot where there is room, else farther off with a line that leads to it."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    parts = []
    for label, (x, y) in zip(labels, places, strict=True):
        box = place_label(label, x, y, taken)
        taken.append(box)
        parts.append(_leader(box, x, y))
        parts.append(_text(box.left + LABEL_GAP, box.bottom - 3, label, "start", "label"))
    return parts


def place_label(label: str, x: float, y: float, taken: Sequence[Box]) -> Box:
    """The nearest free place around a dot; outside of the frame, or over another, only where there is no other."""
    width, height = len(label) * CHARACTER_PIXELS + 2 * LABEL_GAP, LABEL_PIXELS + 3.0
    candidates = []
    for distance in range(10, 240, 12):
        for angle in ANGLES:
            across, down = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            middle = x + across * (distance + width / 2 * abs(across)), y + down * (distance + height / 2)
            candidates.append(
                Box(middle[0] - width / 2, middle[1] - height / 2, middle[0] + width / 2, middle[1] + height / 2)
            )
    frame = Box(FRAME.left - LABEL_GAP, FRAME.top, FRAME.right + LABEL_GAP, FRAME.bottom)
    free = [box for box in candidates if box.is_inside(frame) and not any(box.overlaps(other) for other in taken)]
    return next((box for box in free if not _is_crossed(box, x, y, taken)), next(iter(free), candidates[0]))


def _is_crossed(box: Box, x: float, y: float, taken: Sequence[Box]) -> bool:
    """Whether the line from a dot to its label would run through another label or dot."""
    end_x, end_y = box.nearest(x, y)
    steps = [number / LINE_STEPS for number in range(1, LINE_STEPS)]
    line = [(x + (end_x - x) * part, y + (end_y - y) * part) for part in steps]
    others = [other for other in taken if not other.holds(x, y)]
    return any(other.holds(*point) for point in line for other in others)


def _leader(box: Box, x: float, y: float) -> str:
    """From the dot to the label, where these lie apart."""
    near_x, near_y = box.nearest(x, y)
    if math.hypot(near_x - x, near_y - y) < 14:
        return ""
    return f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{near_x:.1f}" y2="{near_y:.1f}"/>'


def bars(values: Sequence[tuple[str, float]], *, title: str, x_title: str) -> str:
    """One bar a row from 0 on, its label before it and its value behind it."""
    left = 20 + max(len(label) for label, _ in values) * CHARACTER_PIXELS
    ticks = nice_ticks(max(value for _, value in values) * 1.08)
    bottom = TOP + len(values) * BAR_PIXELS

    def place(value: float) -> float:
        return left + value / ticks[-1] * (WIDTH - RIGHT - left)

    parts = []
    for tick in ticks:
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 18, number(tick, ticks), "middle"))
    for row, (label, value) in enumerate(values):
        y = TOP + row * BAR_PIXELS
        parts.append(f'<rect class="bar" x="{left:.1f}" y="{y + 4}" width="{place(value) - left:.1f}" height="18"/>')
        parts.append(_text(left - 8, y + 17, label, "end", "label"))
        parts.append(_text(place(value) + 6, y + 17, f"{value:,.0f}", "start"))
    parts.append(_text((left + WIDTH - RIGHT) / 2, bottom + 42, x_title, "middle", "title"))
    return _svg(WIDTH, bottom + BOTTOM, title, parts)


def _text(x: float, y: float, text: str, anchor: str, class_: str = "tick") -> str:
    return f'<text class="{class_}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return f"{head}<title>{escape(title)}</title>{''.join(parts)}</svg>"
