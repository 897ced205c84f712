"""Reading and refusing files to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.domain.errors import InvalidParameter
from app.domain.training_data import MAX_LINE_BYTES, Completion, Conversation, check_training_file, read_records

USER = {"role": "user", "content": "Where is the mill?"}
ASSISTANT = {"role": "assistant", "content": "By the river."}


def write(path: Path, *records: Any, end: str = "\n") -> Path:
    path.write_bytes("".join(json.dumps(record) + end for record in records).encode())
    return path


def refused(path: Path) -> str:
    with pytest.raises(InvalidParameter) as caught:
        check_training_file(path)
    assert caught.value.param == "training_file"
    return caught.value.message


def test_both_formats_are_read_with_their_lines_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "data", {"messages": [USER, ASSISTANT]}, {"prompt": "1, 2, ", "completion": "3"})
    (first, chat), (second, plain) = read_records(path)
    assert (first, second) == (1, 2)
    assert isinstance(chat, Conversation)
    assert [message.is_learned for message in chat.messages] == [False, True]
    assert plain == Completion(prompt="1, 2, ", completion="3")
    assert check_training_file(path).examples == 2
    assert check_training_file(path).conversations == 1


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "data", {"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}, end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\r\n")
    assert check_training_file(path).examples == 2


def test_tools_reach_the_template_as_objects_and_results_with_their_names(tmp_path: Path) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weigh", "arguments": '{"of": "grain"}'}}
    tools = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}]
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call], "weight": 1},
        {"role": "tool", "tool_call_id": "call_1", "content": "3 kg"},
        {"role": "assistant", "content": "Three.", "weight": 0},
    ]
    path = write(tmp_path / "data", {"messages": messages, "tools": tools, "parallel_tool_calls": False})
    ((_, record),) = read_records(path)
    assert isinstance(record, Conversation)
    system, _, asked, result, _ = record.template_messages()
    assert system == {"role": "system", "content": "Be brief."}
    assert asked["tool_calls"][0]["function"] == {"name": "weigh", "arguments": {"of": "grain"}}
    assert result["name"] == "weigh"
    assert record.template_tools() == tools
    assert [message.is_learned for message in record.messages] == [False, False, True, False, False]


GOOD = json.dumps({"messages": [USER, ASSISTANT]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"line 2: it is no JSON"),
        (b"[]", r"line 2: it holds a JSON list, not an object; write one"),
        (b'{"a": "\xff"}', r"line 2: byte 8 is no UTF-8; save the file as UTF-8"),
        (b"[" * 100_000, r"line 2: it is no JSON"),
        (b"{}", r"line 2: it has neither messages nor prompt and completion; write"),
        (b'{"text": "a"}', r"'text' is outdated; use prompt and completion"),
        (b'{"prompt": "a"}', r"line 2: completion is missing; add it"),
        (b'{"prompt": "a", "completion": ""}', r"line 2: completion: .*at least 1 character"),
        (b'{"messages": []}', r"line 2: messages: .*at least 1 item"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', r"line 2: no assistant message of weight 1"),
        (
            b'{"messages": [{"role": "assistant", "content": "a", "weight": 0}]}',
            r"line 2: no assistant message of weight 1",
        ),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', r"line 2: messages\[0\]\.role: .*'assistant'"),
        (b'{"messages": [{"role": "assistant"}]}', r"messages\[0\]: content is missing; write the message's text"),
        (b'{"messages": [{"role": "assistant", "content": 3}]}', r"messages\[0\]\.content: "),
        (
            b'{"messages": [{"role": "user", "content": "a", "weight": 1}]}',
            r"messages\[0\]: weight belongs to assistant messages",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a", "weight": 2}]}', r"messages\[0\]\.weight: "),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', r"line 2: it has half of a surrogate pair"),
        (
            b'{"messages": [{"role": "assistant", "content": "a", "function_call": {}}]}',
            r"messages\[0\]\.function_call is unknown; use tool_calls",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a"}], "id": 1}', r"line 2: id is unknown; take it out"),
        (
            b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}',
            r"tool_calls\[0\]\.function\.arguments: 'x' is no JSON; write the arguments as a JSON object",
        ),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}',
            r"messages\[0\]\.content\[0\]\.type: .*'text'",
        ),
    ],
)
def test_a_line_at_fault_is_named_with_the_reason(line: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n")
    with pytest.raises(InvalidParameter, match=message):
        check_training_file(path)


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n"])
def test_a_file_without_examples_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(content)
    assert "holds no example" in refused(tmp_path / "data")


def test_a_line_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "data").open("wb") as file:
        file.write(b'{"prompt": "')
        file.truncate(MAX_LINE_BYTES + 100)
    assert "line 1: it has more than" in refused(tmp_path / "data")


def test_the_parameter_at_fault_can_be_the_validation_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(InvalidParameter) as caught:
        check_training_file(tmp_path / "data", param="validation_file")
    assert caught.value.param == "validation_file"
