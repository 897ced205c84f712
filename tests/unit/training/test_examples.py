"""Which tokens of an example are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.errors import InvalidParameter
from app.domain.training_data import Conversation, parse_record
from app.storage.checkpoints import Checkpoint, inspect_checkpoint
from tests.fakes.checkpoints import CHAT_TEMPLATE, TOOLS_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.fakes.tokenizers import STYLES, styled_tokenizer
from workers.training.collation import IGNORED, Padding
from workers.training.examples import Encoder, Example, Examples
from workers.training.rendering import render

MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen 3's: earlier answers lose what the last one shows.
FORGETFUL_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n</think>\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the mill?"},
    {"role": "assistant", "content": "By the river."},
    {"role": "user", "content": "What turns?"},
    {"role": "assistant", "content": "\nThe stones turn."},
]


def conversation(messages: list[dict[str, Any]], **fields: Any) -> Conversation:
    record = parse_record(json.dumps({"messages": messages, **fields}).encode(), 1)
    assert isinstance(record, Conversation)
    return record


def learned_text(tokenizer: Any, record: Conversation, stops: frozenset[int]) -> list[str]:
    """Each run of learned tokens, decoded."""
    ids, learned = render(tokenizer, record, stops)
    runs: list[list[int]] = []
    for index, (token, flag) in enumerate(zip(ids, learned, strict=True)):
        if flag and (index == 0 or not learned[index - 1]):
            runs.append([])
        if flag:
            runs[-1].append(token)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs]


def stops_of(tokenizer: Any, *names: str) -> frozenset[int]:
    return frozenset(tokenizer.convert_tokens_to_ids([*names, tokenizer.eos_token]))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED_TEMPLATE], ids=["prefixes", "marks"])
def test_answers_and_their_end_are_learned_and_nothing_else(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    texts = learned_text(tokenizer, conversation(TALK), stops_of(tokenizer))
    assert [text.strip() for text in texts] == ["By the river.<|im_end|>", "The stones turn.<|im_end|>"]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED_TEMPLATE], ids=["prefixes", "marks"])
def test_an_answer_of_weight_0_is_only_read(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    messages = [*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]
    assert len(learned_text(tokenizer, conversation(messages), stops_of(tokenizer))) == 1


@pytest.mark.parametrize("style", sorted(STYLES))
def test_templates_of_every_family_are_rendered_whole(style: str) -> None:
    """The ids are those of the whole conversation as a server would encode it, and the answers are found in them."""
    tokenizer = styled_tokenizer(style)
    stops = frozenset(tokenizer.convert_tokens_to_ids(list(STYLES[style].stop)))
    record = conversation(TALK)
    ids, _ = render(tokenizer, record, stops)
    assert ids == tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    first, second = learned_text(tokenizer, record, stops)
    end = STYLES[style].stop
    assert first.removesuffix(next(stop for stop in end if first.endswith(stop))).strip() == "By the river."
    assert "The stones turn." in second


def test_calls_of_tools_are_learned_and_results_are_not() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TOOLS_TEMPLATE
    messages = [
        {"role": "user", "content": "Weigh it."},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "weigh", "arguments": '{"of": "rye"}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "3 kg"},
        {"role": "assistant", "content": "Three."},
    ]
    tools = [{"type": "function", "function": {"name": "weigh"}}]
    call, answer = learned_text(tokenizer, conversation(messages, tools=tools), stops_of(tokenizer))
    assert json.loads(call.split("<tool_call>")[1].split("</tool_call>")[0]) == {
        "name": "weigh",
        "arguments": {"of": "rye"},
    }
    assert answer == "Three.<|im_end|>"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED_TEMPLATE], ids=["prefixes", "marks"])
def test_a_template_without_a_place_for_tools_is_refused(template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tools = [{"type": "function", "function": {"name": "weigh"}}]
    with pytest.raises(ValueError, match="no place for the tool 'weigh'"):
        render(tokenizer, conversation(TALK, tools=tools), stops_of(tokenizer))


def test_a_template_that_rewrites_earlier_answers_is_refused_for_them_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = FORGETFUL_TEMPLATE
    with pytest.raises(ValueError, match=r"messages\[2\] otherwise once more messages follow; give it weight 0"):
        render(tokenizer, conversation(TALK), stops_of(tokenizer))
    (text,) = learned_text(
        tokenizer, conversation([*TALK[:2], TALK[2] | {"weight": 0}, *TALK[3:]]), stops_of(tokenizer)
    )
    assert text == "<think>\n</think>\n\nThe stones turn.<|im_end|>"


def test_a_template_that_asks_for_other_answers_than_it_writes_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>assistant\n' }}", "<|im_start|>miller\n' }}")
    with pytest.raises(ValueError, match=r"messages\[2\] otherwise than when it asks for one"):
        render(tokenizer, conversation(TALK), stops_of(tokenizer))


def test_an_answer_that_the_template_leaves_open_gets_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
        + ("{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    )
    assert learned_text(tokenizer, conversation(TALK[1:3]), stops_of(tokenizer)) == ["By the river.<|im_end|>"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return inspect_checkpoint(tiny_llama(tmp_path_factory.mktemp("model")))


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_completion_and_its_end_are_learned(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write(tmp_path / "data", {"prompt": "1, 2, ", "completion": "3"}, {"prompt": "", "completion": "The mill"})
    encoder = Encoder(checkpoint, 64)
    first, second = encoder.encode_file(path)
    tokenizer = encoder.tokenizer
    assert tokenizer.decode(first.input_ids) == "1, 2, 3<|im_end|>"
    assert tokenizer.decode(first.input_ids[first.carries_loss]) == "3<|im_end|>"
    assert tokenizer.decode(first.prompt) == "1, 2, "
    assert not second.carries_loss[0]
    assert second.carries_loss[1:].all()


def test_a_completion_begins_with_the_token_that_the_tokenizer_puts_before_text(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    styled_tokenizer("llama3", 512).save_pretrained(folder)
    encoder = Encoder(inspect_checkpoint(folder), 64)
    (example,) = encoder.encode_file(write(tmp_path / "data", {"prompt": "The", "completion": " mill"}))
    assert encoder.tokenizer.decode(example.input_ids) == "<|begin_of_text|>The mill<|eot_id|>"


def test_long_examples_are_cut_and_counted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = write(tmp_path / "data", {"messages": TALK}, {"messages": TALK[1:3]})
    whole = Encoder(checkpoint, 1000).encode_file(path)
    length = len(whole.items[0]) - 3
    cut = Encoder(checkpoint, length).encode_file(path)
    assert (whole.truncated, cut.truncated) == (0, 1)
    assert [len(example) for example in cut] == [length, len(whole.items[1])]
    assert np.array_equal(cut.items[0].input_ids, whole.items[0].input_ids[:length])
    assert whole.tokens == sum(len(example) for example in whole)


def test_an_example_of_which_nothing_learned_is_left_is_refused_with_its_line(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    long = [{"role": "user", "content": "Where is the mill? " * 9}, TALK[2]]
    path = write(tmp_path / "data", {"messages": TALK[1:3]}, {"messages": long})
    with pytest.raises(InvalidParameter, match=r"line 2: of its \d+ tokens the first 48 .*sequence_length") as caught:
        Encoder(checkpoint, 48, "validation_file").encode_file(path)
    assert caught.value.param == "validation_file"


def test_no_example_is_longer_than_the_model_takes(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", max_position_embeddings=60)
    (example,) = Encoder(inspect_checkpoint(folder), 1000).encode_file(write(tmp_path / "data", {"messages": TALK}))
    assert len(example) == 60


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", vocab_size=300)
    tiny_tokenizer(400).save_pretrained(folder)
    path = write(tmp_path / "data", {"prompt": "a", "completion": "The miller carried the grain"})
    with pytest.raises(InvalidParameter, match=r"line 1: it holds the token \d+, and the model has embeddings of 300"):
        Encoder(inspect_checkpoint(folder), 64).encode_file(path)


def test_what_the_template_refuses_is_refused_with_its_line(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model", chat_template="{{ raise_exception('roles must alternate') }}")
    path = write(tmp_path / "data", {"prompt": "a b", "completion": "c"}, {"messages": TALK})
    with pytest.raises(InvalidParameter, match=r"line 2: the model's chat template refuses it: roles must alternate"):
        Encoder(inspect_checkpoint(folder), 64).encode_file(path)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidParameter, match=r"line 1: it is a conversation, and the model has no chat template"):
        Encoder(inspect_checkpoint(folder), 64).encode_file(write(tmp_path / "data", {"messages": TALK}))


def test_the_prompt_is_what_stands_before_the_last_answer(checkpoint: Checkpoint, tmp_path: Path) -> None:
    encoder = Encoder(checkpoint, 1000)
    messages = [*TALK[:4], {"role": "assistant", "content": "Stones."}]
    (example,) = encoder.encode_file(write(tmp_path / "data", {"messages": messages}))
    assert encoder.tokenizer.decode(example.prompt).endswith("What turns?<|im_end|>\n<|im_start|>assistant\n")


def test_batches_are_padded_on_the_right_and_padding_carries_no_loss() -> None:
    examples = [
        Example(np.array([5, 6, 7], dtype=np.int32), np.array([False, True, True])),
        Example(np.array([8, 9], dtype=np.int32), np.array([False, True])),
    ]
    batch = Padding(3)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]


def test_a_sample_takes_whole_examples_up_to_its_tokens() -> None:
    one = Example(np.zeros(10, dtype=np.int32), np.ones(10, dtype=np.bool_))
    examples = Examples([one] * 5)
    assert [len(examples.first(tokens)) for tokens in (1, 10, 29, 30, 1000)] == [1, 1, 2, 3, 5]
