"""LangChain's ChatOpenAI against a server: `python langchain_chat.py <base url> <model> <model with tools>`."""

from __future__ import annotations

import sys
from typing import Literal

from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[1, 2, 3]


def main(base_url: str, model: str, calling_model: str) -> None:
    def chat(name: str, **fields: object) -> ChatOpenAI:
        return ChatOpenAI(base_url=base_url, api_key=SecretStr("unused"), model=name, max_retries=0, **fields)  # type: ignore[arg-type]

    question = "What is the capital of France?"
    speaking = chat(model, temperature=0, max_completion_tokens=12, stream_usage=True)
    whole = speaking.invoke(question)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    chunks = list(speaking.stream(question))
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata][-1]
    assert usage["total_tokens"] == whole.usage_metadata["total_tokens"]

    structured = speaking.model_copy(update={"max_tokens": 100}).with_structured_output(Weather, method="json_schema")
    assert isinstance(structured.invoke("How is the weather?"), Weather)

    calling = chat(calling_model, max_completion_tokens=200, temperature=1)
    called = calling.bind_tools([Weather], tool_choice="Weather").invoke("How is the weather?")
    (call,) = called.tool_calls  # type: ignore[attr-defined]
    assert Weather.model_validate(call["args"])
    result = ToolMessage("sunny", tool_call_id=call["id"])
    assert calling.bind_tools([Weather], tool_choice="none").invoke([("user", "How is it?"), called, result])


if __name__ == "__main__":
    main(*sys.argv[1:])
