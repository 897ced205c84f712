"""POST /v1/completions and /v1/embeddings.

https://platform.openai.com/docs/api-reference/completions/create
https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.serving.contract.fields import MOST_TOP_LOGPROBS, GenerationFields, Prompts, Strict, Text, as_list


class CompletionRequest(GenerationFields):
    prompt: Prompts
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP_LOGPROBS)
    best_of: int | None = Field(default=None, ge=1)

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        return as_list(self.prompt)


class EmbeddingsRequest(Strict):
    model: Text
    keep_alive: float | str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        return as_list(self.input)
