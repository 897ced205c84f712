"""Rules of the code that no linter knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [path for folder in ("app", "workers", "migrations") for path in sorted((ROOT / folder).rglob("*.py"))]
STATE_WRITER = ROOT / "app" / "persistence" / "jobs.py"


def _nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _assigned_attributes(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    if isinstance(node, ast.AnnAssign | ast.AugAssign):
        return [node.target]
    return []


def test_one_file_alone_writes_a_jobs_state() -> None:
    """`job.state = …` and `.values(state=…)` stand nowhere else; a new row starts as queued."""
    offenders = []
    for path in SOURCES:
        for node in _nodes(path):
            attributes = [target for target in _assigned_attributes(node) if isinstance(target, ast.Attribute)]
            writes = any(
                target.attr == "state" and ast.unparse(target.value) not in ("self", "app") for target in attributes
            )
            is_update = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".values")
            if isinstance(node, ast.Call) and is_update:
                writes |= any(keyword.arg == "state" for keyword in node.keywords)
            if writes and path != STATE_WRITER and not path.is_relative_to(ROOT / "workers" / "serving"):
                offenders.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}")
    assert offenders == []


def test_only_the_persistence_layer_speaks_sql() -> None:
    allowed = (ROOT / "app" / "persistence", ROOT / "migrations")
    names = {"select", "update", "delete", "insert"}
    offenders = []
    for path in SOURCES:
        if any(path.is_relative_to(folder) for folder in allowed):
            continue
        for node in _nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sqlalchemy"):
                found = names & {alias.name for alias in node.names}
                offenders += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(found)]
    assert offenders == []


def test_only_the_settings_read_bitmills_environment() -> None:
    offenders = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if "os.environ" in text and path.name not in ("settings.py", "launch.py", "main.py"):
            for number, line in enumerate(text.splitlines(), start=1):
                if "os.environ" in line and "BITMILL" in line:
                    offenders.append(f"{path.relative_to(ROOT)}:{number}")
    assert offenders == []


def test_files_stay_short() -> None:
    long = {
        str(path.relative_to(ROOT)): count for path in SOURCES if (count := len(path.read_text().splitlines())) > 400
    }
    assert long == {}
