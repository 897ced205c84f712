"""Adapters beside their base on every engine that takes them, against peft's own generation with each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.persistence.artifacts import ArtifactRepository
from app.persistence.deployments import DeploymentRepository
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.adapters import adapter_row, random_adapter
from tests.fakes.checkpoints import tiny_llama
from tests.fakes.openai_requests import ENGINES, ENGINES_FOLDER, PROMPT
from tests.fakes.serving import add_model, error_of, running_host
from workers.serving.engines.registry import load_engine

BASE = "org/base"
NAMES = {BASE: None, "ft:first": 1, "ft:second": 2}
TOKENS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny_llama(folder, hidden_size=256, intermediate_size=512, initializer_range=0.15, dtype="float32")


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: random_adapter(checkpoint, folder / name.partition(":")[2], seed) for name, seed in NAMES.items() if seed
    }


@pytest.fixture(scope="module")
def expected(checkpoint: Path, adapters: dict[str, Path]) -> dict[str, str]:
    """Greedy continuations."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    asked = tokenizer(PROMPT, return_tensors="pt")
    found = {}
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        if name in adapters:
            model = PeftModel.from_pretrained(model, adapters[name])
        tokens = model.generate(**asked, max_new_tokens=TOKENS, do_sample=False)
        found[name] = tokenizer.decode(tokens[0, asked.input_ids.shape[1] :], skip_special_tokens=True)
    assert len(set(found.values())) == len(NAMES)
    return found


@pytest.fixture(scope="module", params=sorted(set(ENGINES) - {"llama_cpp"}))
def host(
    request: pytest.FixtureRequest,
    checkpoint: Path,
    adapters: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("data"), engines_dir=ENGINES_FOLDER, serving_context_length=256,
        serving_load_timeout_seconds=600,
    )  # fmt: skip
    migrate(settings.database)
    database = Database(settings.database)
    add_model(database, BASE, ArtifactKind.BASE, ArtifactFormat.SAFETENSORS, checkpoint)
    settings.artifacts_folder.mkdir(parents=True)
    for name, folder in adapters.items():
        (settings.artifacts_folder / folder.name).symlink_to(folder)
        with database.transaction() as session:
            row = adapter_row(name, {"type": "lora", "base": BASE}, source=BASE, path=folder.name)
            ArtifactRepository(session).add(row)
    with database.transaction() as session:
        DeploymentRepository(session).put(BASE, {"engine": request.param, "dtype": "float32"})
    database.close()
    with running_host(settings) as url:
        yield url


@pytest.fixture(scope="module")
def client(host: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{host}/v1", api_key="unused", max_retries=0, timeout=600)


def answer(client: openai.OpenAI, name: str) -> str:
    made = client.completions.create(model=name, prompt=PROMPT, max_tokens=TOKENS, temperature=0)
    assert made.model == name
    return made.choices[0].text


def test_each_request_gets_its_own_adapter(client: openai.OpenAI, host: str, expected: dict[str, str]) -> None:
    # The first loads the base, with room for adapters where the engine wants to know.
    assert answer(client, "ft:first") == expected["ft:first"]
    names = [*NAMES, *reversed(NAMES), *NAMES]
    with ThreadPoolExecutor(len(names)) as threads:
        answers = list(threads.map(lambda name: answer(client, name), names))
    assert answers == [expected[name] for name in names]
    (view,) = httpx.get(f"{host}/v1/deployments").json()["data"]
    assert (view["model"], view["adapters"]) == (BASE, ["ft:first", "ft:second"])


def test_an_adapter_is_taken_off_and_comes_back(client: openai.OpenAI, host: str, expected: dict[str, str]) -> None:
    assert answer(client, "ft:second") == expected["ft:second"]
    assert httpx.delete(f"{host}/v1/deployments/ft:second", timeout=60).status_code == 200
    (view,) = httpx.get(f"{host}/v1/deployments").json()["data"]
    assert "ft:second" not in view["adapters"]
    assert answer(client, "ft:second") == expected["ft:second"]
    assert answer(client, BASE) == expected[BASE]


def test_a_base_without_room_says_how_to_deploy_it(client: openai.OpenAI, host: str, expected: dict[str, str]) -> None:
    (view,) = httpx.get(f"{host}/v1/deployments").json()["data"]
    engine = view["engine"]
    httpx.delete(f"{host}/v1/deployments/{BASE}", timeout=60).raise_for_status()
    serving = {"model": BASE, "engine": engine, "dtype": "float32"}
    httpx.post(f"{host}/v1/deployments", json=serving, timeout=600).raise_for_status()
    if "adapter_rank" not in load_engine(engine, Settings()).spec.options:
        assert answer(client, "ft:first") == expected["ft:first"]
        return
    with pytest.raises(openai.InternalServerError) as refused:
        answer(client, "ft:first")
    assert "deploy the base with `adapter_rank` 4" in error_of(refused)["message"]
    httpx.post(f"{host}/v1/deployments", json={**serving, "adapter_rank": 4}, timeout=600).raise_for_status()
    assert answer(client, "ft:first") == expected["ft:first"]
