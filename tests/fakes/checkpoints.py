"""Tiny checkpoints for tests: random weights, a real tokenizer, and the real file formats."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.fitting import fit

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with tools, in the form of Hermes and Qwen.
TOOLS_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n# Tools\n<tools>' }}{% for tool in tools %}{{ '\n' + (tool | tojson) }}"
    '{% endfor %}{{ \'\n</tools>\nCall one as <tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call><|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{% if message.role == 'tool' %}"
    "{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    '{% for call in message.tool_calls or [] %}{{ \'\n<tool_call>\n{"name": "\' + call.function.name + '
    '\'", "arguments": \' }}{% if call.function.arguments is string %}{{ call.function.arguments }}{% else %}'
    "{{ call.function.arguments | tojson }}{% endif %}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS = "<|im_start|>"
EOS = "<|im_end|>"
PAD = "<|endoftext|>"
TEXT = (
    "The miller carried the grain to the mill by the river, where the stones turned day and night.",
    "What is the capital of France? The capital of France is Paris, a city on the Seine.",
    "A quantized model keeps most of what the original knew, in a fraction of its bytes.",
    "def add(left, right):\n    return left + right\n\n\nprint(add(2, 3))  # 5\n",
    "In 1783 two brothers sent a sheep, a duck and a rooster into the sky under a paper balloon.",
    "Numbers such as 0, 1, 2, 3, 10, 42, 127 and 65536 appear; so do words like naïve, Zürich and 日本.",
)


def tiny_llama(
    folder: Path,
    *,
    shards: int = 1,
    hidden_size: int = 64,
    intermediate_size: int | None = None,
    layers: int = 2,
    heads: int = 4,
    key_value_heads: int = 2,
    vocab_size: int = 512,
    max_position_embeddings: int = 1024,
    tie_word_embeddings: bool = False,
    dtype: str = "bfloat16",
    seed: int = 0,
    chat_template: str | None = None,
    initializer_range: float = 0.02,
    fitted: bool = True,
) -> Path:
    """Saves an almost random LlamaForCausalLM with a byte-level BPE tokenizer and a ChatML template in `folder`.

    The weights fill `shards` files or one more. `hidden_size=256, intermediate_size=512` fits the 256-wide
    blocks of GGUF's K types. `vocab_size` bounds the tokenizer's and is the embeddings'. With a larger
    `initializer_range` the model prefers some tokens clearly, whatever rounding does. One that is not `fitted` knows
    nothing of any text. Returns `folder`.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(vocab_size)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or 2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=tie_word_embeddings,
        initializer_range=initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if fitted:
        fit(model, tokenizer)
    model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=size + 1 if shards == 1 else -(-size // shards))
    tokenizer.save_pretrained(folder)
    return folder


def tiny_tokenizer(vocab_size: int = 512):  # type: ignore[no-untyped-def]  # transformers is imported on demand
    """A fast tokenizer trained on TEXT, with the pre-tokenizer and the special tokens of GPT-2's family."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT * 2, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def bare_checkpoint(folder: Path, *, architecture: str = "LlamaForCausalLM") -> Path:
    """A checkpoint of two small tensors, written by hand in a millisecond: for whom only files matter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], "hidden_size": 4}))
    write_safetensors(folder / "model.safetensors", {"a": ("F32", [2, 3]), "b": ("BF16", [4])})
    return folder


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A valid safetensors file with the given dtypes (F32, BF16, U8) and shapes, and zeros for data."""
    widths = {"F32": 4, "BF16": 2, "U8": 1}
    header = {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = widths[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    write_raw(path, json.dumps(header).encode(), bytes(offset))


def write_raw(path: Path, header: bytes, data: bytes, *, length: int | None = None) -> None:
    """A file laid out like safetensors from parts that may be wrong; `length` is the claimed header size."""
    claimed = len(header) if length is None else length
    path.write_bytes(claimed.to_bytes(8, "little") + header + data)
