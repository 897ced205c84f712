"""One host for these tests, with a model of each kind on each engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import openai
import pytest

from app.domain.artifacts import ArtifactKind
from app.domain.quantization.catalog import parse_method
from app.persistence.deployments import DeploymentRepository
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from app.storage.checkpoints import inspect_checkpoint
from tests.fakes.checkpoints import TOOLS_TEMPLATE, tiny_llama
from tests.fakes.openai_requests import ARTIFACTS, CASES, CONTEXT_LENGTH, ENGINES, ENGINES_FOLDER
from tests.fakes.run import RecordingRun
from tests.fakes.serving import add_model, running_host
from workers.quantization.registry import load_method


@pytest.fixture(scope="package")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    data = tmp_path_factory.mktemp("contract")
    settings = Settings(
        data_dir=data, engines_dir=ENGINES_FOLDER, serving_context_length=CONTEXT_LENGTH,
        serving_max_models=3 * len(ENGINES), serving_load_timeout_seconds=600,
    )  # fmt: skip
    migrate(settings.database)
    database = Database(settings.database)
    size: Any = {"hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.15}
    sources = {
        "plain": tiny_llama(data / "plain", **size),
        # Its chat template knows of tools.
        "tools": tiny_llama(data / "tools", **size, chat_template=TOOLS_TEMPLATE),
        "embedding": tiny_embedding_model(data / "embedding", size),
    }
    for (kind, source), (name, case) in product(sources.items(), CASES.items()):
        folder = settings.artifacts_folder / f"{name}-{kind}"
        folder.mkdir(parents=True)
        spec, params = parse_method(ARTIFACTS[case.artifact])
        checkpoint = inspect_checkpoint(source)
        load_method(spec.name).quantize(checkpoint, folder, params, RecordingRun(checkpoint, settings.cache_folder))
        add_model(database, f"{kind}:{name}", ArtifactKind.QUANTIZED, spec.output, folder)
        with database.transaction() as session:
            DeploymentRepository(session).put(f"{kind}:{name}", {"engine": case.engine})
    database.close()
    return settings


def tiny_embedding_model(folder: Path, size: dict[str, Any]) -> Path:
    """As sentence-transformers saves one: a model, and how its vectors are pooled."""
    tiny_llama(folder, **size)
    modules = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "Normalize")]
    listed = [
        {"idx": int(number), "name": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, path, kind in modules
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 256, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


@pytest.fixture(scope="package")
def host(settings: Settings) -> Iterator[str]:
    with running_host(settings) as url:
        yield url


@pytest.fixture(scope="package")
def client(host: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host}/v1", api_key="unused", max_retries=0, timeout=120)


@pytest.fixture(scope="package", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="package")
def engine(case: str) -> str:
    return CASES[case].engine


@pytest.fixture(scope="package")
def model(case: str) -> str:
    return f"plain:{case}"


@pytest.fixture(scope="package")
def calling_model(case: str) -> str:
    return f"tools:{case}"


@pytest.fixture(scope="package")
def embedding_model(case: str) -> str:
    return f"embedding:{case}"
