"""Tiny tokenizers of the kinds that model families use, trained on TEXT, with those families' special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.fakes.checkpoints import CHAT_TEMPLATE, TEXT
from workers.quantization.gguf.pretokenizer import LLAMA3_PATTERN, O200K_PATTERN, QWEN2_PATTERN, TEKKEN_PATTERN

ROLES_TEMPLATE = (
    "{{% for message in messages %}}{{{{ '{start}' + message['role'] + '{after}' + message['content'] + '{end}' }}}}"
    "{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{start}assistant{after}' }}}}{{% endif %}}"
)


@dataclass(frozen=True)
class Style:
    """`stop` lists every token that ends a generation, the tokenizer's own first."""

    bos: str | None
    stop: tuple[str, ...]
    special: tuple[str, ...]
    template: str
    pattern: str | None = None
    ignore_merges: bool = False
    adds_bos: bool = False
    prepends_space: bool = False


STYLES = {
    "gpt2": Style("<|im_start|>", ("<|im_end|>",), ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), CHAT_TEMPLATE),
    "llama2": Style(
        "<s>",
        ("</s>",),
        ("<unk>", "<s>", "</s>"),
        ROLES_TEMPLATE.format(start="[INST]", after=" ", end="</s>"),
        adds_bos=True,
        prepends_space=True,
    ),
    "llama3": Style(
        "<|begin_of_text|>",
        ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
        (
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
            "<|eot_id|>",
        ),
        ROLES_TEMPLATE.format(start="<|start_header_id|>", after="<|end_header_id|>\\n\\n", end="<|eot_id|>"),
        pattern=LLAMA3_PATTERN,
        ignore_merges=True,
        adds_bos=True,
    ),
    "dbrx": Style(None, ("<|im_end|>",), ("<|im_start|>", "<|im_end|>"), CHAT_TEMPLATE, pattern=LLAMA3_PATTERN),
    "qwen2": Style(
        None,
        ("<|im_end|>", "<|endoftext|>"),
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        CHAT_TEMPLATE,
        pattern=QWEN2_PATTERN,
    ),
    "tekken": Style(
        "<s>",
        ("</s>",),
        ("<unk>", "<s>", "</s>", "[INST]"),
        ROLES_TEMPLATE.format(start="[INST]", after=" ", end="</s>"),
        pattern=TEKKEN_PATTERN,
        ignore_merges=True,
        adds_bos=True,
    ),
    "gpt-4o": Style(
        None,
        ("<|endoftext|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"),
        ROLES_TEMPLATE.format(start="<|", after="|>", end="<|end|>"),
        pattern=O200K_PATTERN,
    ),
    "gemma": Style(
        "<bos>",
        ("<eos>", "<end_of_turn>"),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        ROLES_TEMPLATE.format(start="<start_of_turn>", after="\\n", end="<end_of_turn>\\n"),
        adds_bos=True,
    ),
    "phi3": Style(
        "<s>",
        ("<|endoftext|>", "<|end|>", "<|assistant|>"),
        ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"),
        ROLES_TEMPLATE.format(start="<|", after="|>\\n", end="<|end|>\\n"),
        prepends_space=True,
    ),
}  # fmt: skip
SENTENCE_PIECE = ("llama2", "gemma", "phi3")


def styled_tokenizer(name: str, vocab_size: int = 640) -> Any:
    """A fast tokenizer of the style. Its size is at most `vocab_size`."""
    from transformers import PreTrainedTokenizerFast

    style = STYLES[name]
    raw = _sentence_piece(style, vocab_size) if name in SENTENCE_PIECE else _byte_level(style, vocab_size)
    _add_bos(raw, style)
    names = {"bos_token": style.bos, "eos_token": style.stop[0], "pad_token": style.special[0]}
    if "<unk>" in style.special:
        names["unk_token"] = "<unk>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    tokenizer.chat_template = style.template
    return tokenizer


def _byte_level(style: Style, vocab_size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE(ignore_merges=style.ignore_merges))
    own_rule = style.pattern is None
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_rule)
    if style.pattern is not None:
        split = pre_tokenizers.Split(Regex(style.pattern), "isolated")
        raw.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        raw.pre_tokenizer = byte_level
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(style.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT * 2, trainer)
    return raw


def _sentence_piece(style: Style, vocab_size: int) -> Any:
    """BPE over characters with a token per byte for the rest, as converted from SentencePiece."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    base = [*style.special, *(f"<0x{byte:02X}>" for byte in range(256))]
    learned = _learn_merges(vocab_size - len(base))
    vocab = {token: number for number, token in enumerate([*base, *learned["vocab"]])}
    raw = Tokenizer(models.BPE(vocab, learned["merges"], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if style.prepends_space else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    raw.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if style.prepends_space else steps)
    raw.add_special_tokens([AddedToken(token, normalized=False) for token in style.special])
    return raw


def _learn_merges(size: int) -> dict[str, Any]:
    """Tokens in order and merges, learned within words that begin with their space."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    learner.train_from_iterator(TEXT * 2, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    return {
        "vocab": sorted(model["vocab"], key=model["vocab"].__getitem__),
        "merges": [tuple(merge) for merge in model["merges"]],
    }


def _add_bos(raw: Any, style: Style) -> None:
    from tokenizers import processors

    if style.adds_bos:
        bos = str(style.bos)
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, raw.token_to_id(bos))]
        )
