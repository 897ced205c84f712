"""docs/api.md says what the engines' specs say."""

from __future__ import annotations

import re
from pathlib import Path

from app.settings import Settings
from workers.serving.contract.call import WITHOUT_EFFECT
from workers.serving.contract.capabilities import EXTRA_FIELDS, ROUTE_FIELDS, EngineContract
from workers.serving.contract.parsing import NOT_HONOURED
from workers.serving.contract.responses import ResponsesRequest
from workers.serving.engines.registry import REGISTRY, load_engine

API = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
# What the table calls a use of a field.
USES = {
    "`echo` with `logprobs`": "echo+logprobs",
    "parts that are no text": "media",
    "parts to fetch from an address": "addresses",
}


def contracts(settings: Settings) -> dict[str, EngineContract]:
    return {name: load_engine(name, settings).spec.contract for name in REGISTRY}


def section(title: str) -> str:
    return API.split(f"### {title}\n", 1)[1].split("\n#", 1)[0]


def fields_in(text: str) -> set[str]:
    return set(re.findall(r"`([a-z_]+)`", text))


def table(text: str) -> list[list[str]]:
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("- |")]


def test_the_table_of_fields_and_engines_is_that_of_the_specs(settings: Settings) -> None:
    known = contracts(settings)
    head, *rows = table(section("Fields that depend on the engine"))
    assert [name.strip("`") for name in head[1:]] == list(known)
    told = {row[0]: row[1:] for row in rows}
    uses = {label: USES.get(label, label.strip("`")) for label in told}
    different = {use for contract in known.values() for use in contract.refuses} | EXTRA_FIELDS
    assert set(uses.values()) == different
    for label, cells in told.items():
        assert cells == ["yes" if honours(contract, uses[label]) else "no" for contract in known.values()], label


def honours(contract: EngineContract, use: str) -> bool:
    return use in contract.extras if use in EXTRA_FIELDS else use not in contract.refuses


def test_every_route_lists_its_fields() -> None:
    rows = {row[0]: row[1] for row in table(section("Fields of every engine"))[1:]}
    fields = ROUTE_FIELDS | {"/v1/responses": frozenset(ResponsesRequest.model_fields)}
    assert set(rows) == {f"`{path}`" for path in fields}
    for path, names in fields.items():
        assert fields_in(rows[f"`{path}`"]) == names - EXTRA_FIELDS - {"reasoning_effort"}, path


def test_what_is_refused_or_without_effect_is_listed() -> None:
    refused = section("Refused")
    assert fields_in(refused.split("\n\n")[0]) == set(NOT_HONOURED)
    assert fields_in(section("Without effect")) - {"true", "false"} == WITHOUT_EFFECT
