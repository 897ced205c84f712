"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does.

llama.cpp knows pre-tokenizers by name and keeps their regular expressions in its code. The name is found
from the rules that the tokenizer itself states; one that is not listed here is refused, since a wrong guess
would split text differently without a sign of it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from app.domain.errors import UnsupportedArchitecture

Rule = tuple[str, ...]

LLAMA3_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN: Final = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")

_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
TEKKEN_PATTERN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}" + _REST
)
O200K_PATTERN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}|\p{{N}}{{1,3}}"
    + _REST
)

# By the splitting rule, and whether a piece that is a token as a whole is taken without merging.
KNOWN: Final[dict[tuple[Rule, bool], str]] = {
    (("ByteLevel+regex",), False): "gpt-2",
    (("Digits:individual", "ByteLevel+regex"), False): "smollm",
    ((f"Split:{LLAMA3_PATTERN}", "ByteLevel"), True): "llama-bpe",
    ((f"Split:{LLAMA3_PATTERN}", "ByteLevel"), False): "dbrx",
    ((f"Split:{QWEN2_PATTERN}", "ByteLevel"), False): "qwen2",
    ((f"Split:{TEKKEN_PATTERN}", "ByteLevel"), True): "tekken",
    ((f"Split:{O200K_PATTERN}", "ByteLevel"), False): "gpt-4o",
}


def llama_cpp_name(tokenizer: dict[str, Any]) -> str:
    """The name for the tokenizer.json given as a dict. Raises UnsupportedArchitecture."""
    whole = bool(tokenizer["model"].get("ignore_merges"))
    name = KNOWN.get((_rules(tokenizer.get("pre_tokenizer")), whole))
    if name is None:
        text = json.dumps([tokenizer.get("pre_tokenizer"), {"ignore_merges": whole}], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        raise UnsupportedArchitecture(
            f"the tokenizer splits text by a rule that no known llama.cpp pre-tokenizer has ({digest}: "
            f"{text[:200]}); choose a safetensors method such as bitsandbytes",
            param="model",
        )
    return name


def _rules(pre_tokenizer: dict[str, Any] | None) -> Rule:
    if pre_tokenizer is None:
        return ()
    if pre_tokenizer["type"] == "Sequence":
        return tuple(_rule(step) for step in pre_tokenizer["pretokenizers"])
    return (_rule(pre_tokenizer),)


def _rule(step: dict[str, Any]) -> str:
    kind = str(step["type"])
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "ByteLevel+regex" if step.get("use_regex", True) else "ByteLevel"
    if kind == "Digits":
        return "Digits:individual" if step.get("individual_digits") else "Digits:runs"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return "Split:" + str(step["pattern"].get("Regex"))
    return json.dumps(step, sort_keys=True)
