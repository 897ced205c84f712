"""The run for machines with a GPU: its short form passes on a processor, and its page lists what it asks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gpu.md"


@pytest.mark.slow
def test_the_short_run_passes_on_a_processor(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    shutil.copy(PAGE, page)
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--minutes", "8", "--quick"]
    command += ["--out", str(tmp_path / "out"), "--docs", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()] == rows
    outcomes = {row["step"]: row["outcome"] for row in rows if row["what"] == "step"}
    assert outcomes == {
        "versions": "done", "worker": "done", "methods": "done", "serving": "done", "out of memory": "not here",
        "vllm": "not here",
    }  # fmt: skip
    (made,) = [row for row in rows if row["step"] == "methods" and row["what"] != "step"]
    assert (made["status"], made["peak_gpu_bytes"]) == ("succeeded", None)
    assert made["predicted"]["weights_bytes"] > 0
    (served,) = [row for row in rows if row["step"] == "serving" and row["what"] != "step"]
    assert "Paris" in served["answer"]
    assert served["tokens_per_second"]["1"] > 0
    assert "| methods | Each method" in page.read_text()
    assert "| serving | Each artifact on the transformers engine: an answer, tokens per second | done, 1 of 1" in (
        page.read_text()
    )


def test_the_page_lists_every_step() -> None:
    code = "import sys; sys.path.insert(0, 'benchmarks'); import gpu; print(gpu.table([], ''))"
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for line in listed.stdout.strip().splitlines():
        what, asks, _ = [cell.strip() for cell in line.strip("|").split("|")]
        assert f"| {what} | {asks} |" in PAGE.read_text()
