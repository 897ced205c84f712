"""What an artifact's address knows of the software that made it."""

from __future__ import annotations

import app
from app.domain.artifacts import artifact_key
from workers.versions import versions_of


def test_libraries_and_bitmill_itself() -> None:
    found = versions_of(("safetensors", "no-such-package"))
    assert set(found) == {"bitmill", "safetensors", "no-such-package"}
    assert (found["bitmill"], found["no-such-package"]) == (app.__version__, "missing")


def test_a_method_that_gives_other_results_gives_other_artifacts() -> None:
    keys = {artifact_key("s", {"type": "int8"}, versions_of((), revision), {}) for revision in (1, 2, 3)}
    assert len(keys) == 3
