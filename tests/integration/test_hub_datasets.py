"""The named data sets, streamed by the datasets library from a stand-in for the hub."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.fakes.hub import FakeHub, running

# In a process of its own, as a job is: the libraries read the hub's address when they are imported.
READ = """
import json, sys
from app.settings import Settings
from workers.calibration.texts import read_documents
settings = Settings(hub_endpoint=sys.argv[2], hub_token=sys.argv[3] or None, hub_timeout_seconds=10)
print(json.dumps(read_documents(sys.argv[1], settings)))
"""
LINES = ["", " = The mill = ", " The stones turned day and night. "]
TALKS = [
    [{"role": "user", "content": f"What does a mill do? {number}"}, {"role": "assistant", "content": "It grinds."}]
    for number in range(3)
]


def dataset(folder: Path, config: str, split: str, file: str) -> Path:
    """A repository whose card says where a configuration's split lies."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    card = {"configs": [{"config_name": config, "data_files": [{"split": split, "path": file}]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return folder / file


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    wikitext, c4, ultrachat = (tmp_path / name for name in ("wikitext", "c4", "ultrachat"))
    write_parquet(
        dataset(wikitext, "wikitext-2-raw-v1", "train", "wikitext-2-raw-v1/train-00000-of-00001.parquet"),
        [{"text": line} for line in LINES],
    )
    with gzip.open(dataset(c4, "en", "train", "en/c4-train.00000-of-00001.json.gz"), "wt") as file:
        file.writelines(json.dumps({"text": f"page {number}", "url": "x"}) + "\n" for number in range(2500))
    write_parquet(
        dataset(ultrachat, "default", "train_sft", "data/train_sft-00000-of-00001.parquet"),
        [{"prompt": "x", "messages": talk} for talk in TALKS],
    )
    datasets = {"Salesforce/wikitext": wikitext, "allenai/c4": c4, "HuggingFaceH4/ultrachat_200k": ultrachat}
    with running(FakeHub(datasets=datasets)) as hub:
        yield hub


def read(name: str, hub: FakeHub, home: Path, token: str = "") -> Any:
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", READ, name, hub.address, token],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_named_datasets_are_streamed_from_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    assert read("wikitext2", hub, tmp_path / "home") == LINES
    assert read("ultrachat", hub, tmp_path / "home") == TALKS


def test_no_more_is_read_of_a_large_one_than_is_used_and_the_token_is_sent(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    documents = read("c4", hub, tmp_path / "home", token="hf_secret")
    assert documents == [f"page {number}" for number in range(2000)]
