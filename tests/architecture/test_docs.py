"""Documentation that is generated, and commands that the README shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.reference import DOCS, PAGES
from app.domain.quantization.catalog import CATALOG

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.mark.parametrize(("name", "page"), PAGES.items())
def test_reference_pages_are_up_to_date(name: str, page: Callable[[], str]) -> None:
    stored = (DOCS / name).read_text(encoding="utf-8")
    assert stored == page(), "run `python -m app.cli.reference`"


def test_the_readme_shows_make_targets_that_exist() -> None:
    shown = set(re.findall(r"^\$? ?make ([a-z]+)", README.read_text(), flags=re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test", "run"} <= shown
    assert shown <= targets


def test_the_readme_lists_every_method() -> None:
    table = README.read_text().partition("## Methods")[2].partition("\n\nMethods that")[0]
    assert set(re.findall(r"`([a-z0-9]+)`", table)) == set(CATALOG)


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert "make test" in script
    assert "make check" in script


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for document in [README, *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", document.read_text()):
            if not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)} → {target}")
    assert broken == []


def test_every_decision_says_the_same_things() -> None:
    for path in (DOCS / "decisions").glob("[0-9]*.md"):
        headings = re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
        assert headings == ["Status", "Context", "Decision", "Consequences"], path.name
