"""Tasks of lm-evaluation-harness: a real worker, a real engine, and accuracies that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.domain.evaluation import EvaluationRequest, EvaluationResult
from app.persistence.unit_of_work import Database
from app.services.evaluations import EvaluationService
from app.settings import Settings
from tests.fakes.checkpoints import TEXT, tiny_llama
from tests.fakes.installation import Installation

CHOICES = [" the mill", " a duck and a rooster", " Paris", " 42"]
QUESTIONS = [text[start : start + 20].strip() for text in TEXT for start in (0, 20, 40)]
COUNT = 6
# Nats by which the best choice has to lead: engines round otherwise than the plain forward pass.
MARGIN = 1.0


def clear_cases(folder: Path) -> list[tuple[str, int, int]]:
    """Questions with their most and least likely continuation by transformers, where the most likely leads clearly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in QUESTIONS:
        question = tokenizer(text)["input_ids"]
        scores = []
        for choice in CHOICES:
            whole = tokenizer(text + choice)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
            places = range(len(question) - 1, len(whole) - 1)
            scores.append(sum(float(logits[place, whole[place + 1]]) for place in places))
        ranked = sorted(range(len(CHOICES)), key=scores.__getitem__)
        if scores[ranked[-1]] - scores[ranked[-2]] > MARGIN:
            found.append((text, ranked[-1], ranked[0]))
    assert len(found) >= COUNT
    return found[:COUNT]


def write_task(folder: Path, cases: list[tuple[str, int]]) -> None:
    folder.mkdir()
    lines = [json.dumps({"question": text, "choices": CHOICES, "answer": answer}) for text, answer in cases]
    (folder / "mill.jsonl").write_text("\n".join(lines))
    task: dict[str, Any] = {
        "task": "mill_choice", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "mill.jsonl")}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}", "doc_to_choice": "{{choices}}", "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }  # fmt: skip
    (folder / "mill.yaml").write_text(yaml.safe_dump(task))


@pytest.fixture
def installation(
    settings: Settings, sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Installation:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = tiny_llama(
        tmp_path / "models" / "tiny", hidden_size=256, intermediate_size=512, initializer_range=0.1, dtype="float32"
    )
    # Right in all documents but two.
    cases = clear_cases(folder)
    wrong = [(text, worst) for text, _, worst in cases[:2]]
    write_task(tmp_path / "tasks", wrong + [(text, best) for text, best, _ in cases[2:]])
    changed = settings.model_copy(
        update={
            "source_roots": (tmp_path / "models",), "tasks_dir": tmp_path / "tasks", "serving_context_length": 512,
        }
    )  # fmt: skip
    return Installation.on(changed, sqlite_database)


def test_a_tasks_accuracy_is_the_models_own(installation: Installation) -> None:
    evaluations = EvaluationService(
        installation.database, installation.settings, installation.dispatcher, installation.workers
    )
    with installation.worker():
        request = EvaluationRequest(model="tiny", metrics=(), tasks=("mill_choice",))
        job = installation.wait(evaluations.submit(request).id)
        assert job.error is None, job.error
        figures = (EvaluationResult.model_validate(job.result).tasks or {})["mill_choice"]
        assert figures.documents == COUNT
        assert figures.metrics["acc"].value == pytest.approx(1 - 2 / COUNT)
        assert (figures.metrics["acc"].standard_error or 0) > 0
        # llama.cpp does not tell a prompt's log-probabilities.
        made = installation.wait(installation.submit("tiny", type="gguf", quantization="F16"))
        assert made.quantized_model is not None, made.error
        job = installation.wait(evaluations.submit(request.model_copy(update={"model": made.quantized_model})).id)
        assert ((job.error or {})["param"], "safetensors" in (job.error or {})["message"]) == ("tasks", True)
        unknown = EvaluationRequest(model="tiny", metrics=(), tasks=("no_such_task",))
        job = installation.wait(evaluations.submit(unknown).id)
        assert ((job.error or {})["param"], "BITMILL_TASKS_DIR" in (job.error or {})["message"]) == ("tasks", True)
