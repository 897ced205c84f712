"""The dialect of engines that honour the contract by themselves: how much it asks for at a time."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.domain.errors import EngineFailed
from tests.fakes.upstream import USAGE, Server, chat, failure, text
from workers.serving.dialects.base import DONE, event, streamed
from workers.serving.dialects.embeddings import LENGTH, TEXTS, in_batches
from workers.serving.dialects.openai import OpenAiDialect

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def ask(server: Server, path: str, **body: Any) -> tuple[int, Any]:
    return server.ask(path, OpenAiDialect(), **body)


def test_one_choice_passes_unchanged() -> None:
    server = Server(v1__chat__completions=chat)
    _, answer = ask(server, CHAT, messages=HI, seed=7, temperature=0.5)
    assert answer["id"] == "x"
    assert server.asked == [(CHAT, {"model": "m", "messages": HI, "seed": 7, "temperature": 0.5})]


def test_each_choice_of_each_prompt_is_asked_for_by_itself() -> None:
    server = Server(v1__completions=text)
    _, answer = ask(server, COMPLETIONS, prompt=["A", "B"], n=2, best_of=2, echo=True, logprobs=1, max_tokens=9)
    same = {"model": "m", "echo": True, "logprobs": 1, "max_tokens": 9}
    assert [body for _, body in server.asked] == [{**same, "prompt": prompt} for prompt in "AABB"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    # A prompt counts once, however many choices it has.
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}


@pytest.mark.parametrize(("seed", "seeds"), [(5, [5, 6, 7]), (2**63 - 2, [2**63 - 2, 2**63 - 1, -(2**63)])])
def test_choices_with_a_seed_have_seeds_of_their_own(seed: int, seeds: list[int]) -> None:
    server = Server(v1__chat__completions=chat)
    ask(server, CHAT, messages=HI, n=3, seed=seed)
    assert [body["seed"] for _, body in server.asked] == seeds


def test_the_beams_of_a_search_are_made_together() -> None:
    def beams(body: dict[str, Any]) -> httpx.Response:
        choices = [{"index": index, "text": "x", "finish_reason": "stop"} for index in range(body["n"])]
        return httpx.Response(200, json={"choices": choices, "usage": USAGE})

    server = Server(v1__completions=beams)
    _, answer = ask(server, COMPLETIONS, prompt=["A", "B"], n=3, use_beam_search=True)
    assert [body["n"] for _, body in server.asked] == [3, 3]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3, 4, 5]


def test_a_stream_of_several_choices_is_one() -> None:
    def pieces(body: dict[str, Any]) -> httpx.Response:
        async def events() -> Any:
            yield event({"choices": [{"index": 0, "text": body["prompt"], "finish_reason": None}], "usage": None})
            yield event({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
            yield event({"choices": [], "usage": USAGE})
            yield DONE

        async def close() -> None:
            """Nothing is open beside the generator."""

        return streamed(events(), close)

    _, events = ask(Server(v1__completions=pieces), COMPLETIONS, prompt=["A", "B"], stream=True)
    texts = {0: "", 1: ""}
    for value in events[:-1]:
        (choice,) = value["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "A", 1: "B"}
    assert events[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": 10}


def test_a_server_that_tells_no_usage_and_one_that_is_no_openai() -> None:
    def bare(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(200, json={"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})

    _, answer = ask(Server(v1__chat__completions=bare), CHAT, messages=HI, n=2)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["total_tokens"] == 0
    for content in (b"<html>", b"[]"):
        with pytest.raises(EngineFailed, match="JSON"):
            ask(Server(v1__chat__completions=lambda _, c=content: httpx.Response(200, content=c)), CHAT,
                messages=HI, n=2)  # fmt: skip


def embed(body: dict[str, Any]) -> httpx.Response:
    data = [{"object": "embedding", "index": index, "embedding": [float(len(given))]}
            for index, given in enumerate(body["input"])]  # fmt: skip
    tokens = sum(map(len, body["input"]))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return httpx.Response(200, json={"object": "list", "data": data[::-1], "usage": usage})


def test_many_texts_are_asked_for_a_few_at_a_time() -> None:
    server = Server(v1__embeddings=embed)
    inputs = ["x" * (1 + index * 7 % 50) for index in range(50)]
    _, answer = ask(server, EMBEDDINGS, input=inputs, encoding_format="float")
    assert [each["embedding"] for each in answer["data"]] == [[float(len(given))] for given in inputs]
    assert [each["index"] for each in answer["data"]] == list(range(50))
    total = sum(map(len, inputs))
    assert answer["usage"] == {"prompt_tokens": total, "total_tokens": total}
    assert [len(body["input"]) for _, body in server.asked] == [16, 16, 16, 2]
    assert all(body["encoding_format"] == "float" for _, body in server.asked)
    asked = [len(given) for _, body in server.asked for given in body["input"]]
    assert asked == sorted(asked, reverse=True)


@pytest.mark.parametrize("given", ["a text", ["a", "b"], [1, 2, 3], [[1], [2, 3]]])
def test_a_few_texts_pass_unchanged(given: Any) -> None:
    def reply(body: dict[str, Any]) -> httpx.Response:
        return httpx.Response(200, json={"seen": json.dumps(body["input"])})

    assert ask(Server(v1__embeddings=reply), EMBEDDINGS, input=given)[1] == {"seen": json.dumps(given)}


def test_a_refused_text_is_the_end_of_all() -> None:
    server = Server(v1__embeddings=failure(400, "too long"))
    status, answer = ask(server, EMBEDDINGS, input=["x"] * 99)
    assert (status, answer["error"]["message"], len(server.asked)) == (400, "too long", 1)


def test_pieces_of_work_are_bounded_in_length_too() -> None:
    lengths = [LENGTH + 1, LENGTH // 2, LENGTH // 2, LENGTH // 2, *[1] * 40]
    batches = in_batches(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [0]
    assert all(sum(lengths[index] for index in batch) <= LENGTH for batch in batches[1:])
    assert max(map(len, batches)) <= TEXTS
