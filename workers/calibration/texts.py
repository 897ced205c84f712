"""Where calibration text comes from. Every source gives documents: plain text, or a conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2  # the HTTP library of huggingface_hub: what its calls raise when nobody answers

from app.domain.errors import HubUnreachable, InvalidParameter
from app.settings import Settings

# A conversation is a list of {"role", "content"} messages, for the model's chat template.
Document = str | list[dict[str, str]]

BUILTIN: Final = Path(__file__).parent / "data" / "builtin.txt"
# The field that names a data set for calibration, and which sets need no hub, by the field that names one.
PARAM: Final = "method.calibration.dataset"
OFFLINE: Final = {PARAM: "'builtin', 'python-docs' or 'self'", "dataset": "'builtin' or 'python-docs'"}
# What is read at most; far more than calibration can use.
MAX_CHARACTERS: Final = 32 * 1024**2
# What is taken of a data set that does not end.
STREAMED_DOCUMENTS: Final = 2000


@dataclass(frozen=True)
class HubDataset:
    """`read` turns one record into a document. `held_out` is the split for measuring, `split` that for calibrating."""

    path: str
    name: str | None
    split: str
    held_out: str
    read: Callable[[dict[str, Any]], Document]


HUB_DATASETS: Final = {
    "wikitext2": HubDataset("Salesforce/wikitext", "wikitext-2-raw-v1", "train", "test", lambda record: record["text"]),
    "c4": HubDataset("allenai/c4", "en", "train", "validation", lambda record: record["text"]),
    "ultrachat": HubDataset(
        "HuggingFaceH4/ultrachat_200k", None, "train_sft", "test_sft", lambda record: record["messages"]
    ),
}


def read_documents(dataset: str, settings: Settings, *, held_out: bool = False, param: str = PARAM) -> list[Document]:
    """The documents of a named data set, or of its split for measuring. Raises HubUnreachable, naming `param`."""
    if dataset == "builtin":
        return [BUILTIN.read_text(encoding="utf-8")]
    if dataset == "python-docs":
        return _python_docs()
    source = HUB_DATASETS[dataset]
    return _from_hub(dataset, source, source.held_out if held_out else source.split, settings, param)


def read_file(path: Path, name: str, *, param: str = PARAM) -> list[Document]:
    """The documents of a file of the user's: JSONL where its `name` says so, else one text.

    Raises InvalidParameter, naming `param`, with the number of the line at fault.
    """
    try:
        return _read_file(path, name)
    except InvalidParameter as error:
        error.param = param
        raise


def _read_file(path: Path, name: str) -> list[Document]:
    with path.open(encoding="utf-8") as file:
        try:
            if name.lower().endswith((".jsonl", ".ndjson")):
                # A line of more than the limit is cut there, and then no JSON.
                return _within_limit(_records(iter(lambda: file.readline(MAX_CHARACTERS), "")))
            return [file.read(MAX_CHARACTERS)]
        except UnicodeDecodeError as error:
            raise _bad_file(f"{name} is not UTF-8 text ({error}); convert it") from error


def fingerprint(documents: Iterable[Document]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document).encode() + b"\n")
    return digest.hexdigest()


def _python_docs() -> list[Document]:
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def _from_hub(dataset: str, source: HubDataset, split: str, settings: Settings, param: str) -> list[Document]:
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        # The library tries again and again for half a minute; this asks once, and says what is wrong.
        token = settings.hub_token or False
        api = HfApi(endpoint=settings.hub_endpoint, token=token)
        api.dataset_info(source.path, timeout=settings.hub_timeout_seconds)
        records = load_dataset(source.path, source.name, split=split, streaming=True, token=token)
        return _within_limit(source.read(record) for record in records.take(STREAMED_DOCUMENTS))
    # Both libraries raise their own and the HTTP library's errors, which share no other base.
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise HubUnreachable(
            f"the data set {source.path!r} could not be read from the hub ({type(error).__name__}: {error}); "
            f"check the network, or use the dataset {OFFLINE[param]} instead of {dataset!r}",
            param=param,
        ) from error


def _within_limit(documents: Iterable[Document]) -> list[Document]:
    kept: list[Document] = []
    left = MAX_CHARACTERS
    for document in documents:
        left -= len(document) if isinstance(document, str) else sum(len(part["content"]) for part in document)
        if left < 0:
            break
        kept.append(document)
    return kept


def _records(lines: Iterable[str]) -> Iterator[Document]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _record(line, number)


def _record(line: str, number: int) -> Document:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _bad_file(f"line {number} is no JSON ({error})") from error
    match record:
        case {"messages": [*messages]} if messages and all(_is_message(message) for message in messages):
            return [{"role": message["role"], "content": message["content"]} for message in messages]
        case {"text": str(text)}:
            return text
        case {"prompt": str(prompt), "completion": str(completion)}:
            return prompt + completion
    raise _bad_file(
        f"line {number} is neither {{'messages': [{{'role', 'content'}}, …]}}, {{'text': …}} nor "
        f"{{'prompt': …, 'completion': …}}"
    )


def _is_message(value: object) -> bool:
    match value:
        case {"role": str(), "content": str()}:
            return True
    return False


def _bad_file(problem: str) -> InvalidParameter:
    return InvalidParameter(f"uploaded text: {problem}", param=PARAM)
