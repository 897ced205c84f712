"""Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json does, and the other way round.

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
# What llama.cpp does for files that name no rule; each pattern splits what the one before left.
DEFAULT_PATTERNS: Final = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)

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

# A mark among the rules: a piece that is a token as a whole is taken without merging.
WHOLE_FIRST: Final = "whole pieces first"
KNOWN: Final[dict[Rule, str]] = {
    ("ByteLevel+regex",): "gpt-2",
    ("Digits:individual", "ByteLevel+regex"): "smollm",
    (f"Split:{LLAMA3_PATTERN}", "ByteLevel", WHOLE_FIRST): "llama-bpe",
    (f"Split:{LLAMA3_PATTERN}", "ByteLevel"): "dbrx",
    (f"Split:{QWEN2_PATTERN}", "ByteLevel"): "qwen2",
    (f"Split:{TEKKEN_PATTERN}", "ByteLevel", WHOLE_FIRST): "tekken",
    (f"Split:{O200K_PATTERN}", "ByteLevel"): "gpt-4o",
    (*(f"Split:{pattern}" for pattern in DEFAULT_PATTERNS), "ByteLevel"): "default",
}
# Other names in llama.cpp for the same rules.
ALIASES: Final = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "pixtral": "llama-bpe",
    "phi-2": "gpt-2",
    "deepseek-r1-qwen": "qwen2",
}


def llama_cpp_name(tokenizer: dict[str, Any]) -> str:
    """The name for the tokenizer.json given as a dict. Raises UnsupportedArchitecture."""
    mark = (WHOLE_FIRST,) if tokenizer["model"].get("ignore_merges") else ()
    name = KNOWN.get(_rules(tokenizer.get("pre_tokenizer")) + mark)
    if name is None:
        text = json.dumps([tokenizer.get("pre_tokenizer"), *mark], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        raise UnsupportedArchitecture(
            f"the tokenizer splits text by a rule that no known llama.cpp pre-tokenizer has ({digest}: "
            f"{text[:200]}); choose a safetensors method such as bitsandbytes",
            param="model",
        )
    return name


def canonical_name(name: str) -> str:
    """The name in KNOWN of the rule that llama.cpp has under `name`. Raises UnsupportedArchitecture."""
    found = ALIASES.get(name, name)
    if found not in KNOWN.values():
        raise UnsupportedArchitecture(
            f"the GGUF file's tokenizer.ggml.pre is {name!r}, a rule that is not known here; give the original "
            f"checkpoint. Known are {', '.join(sorted([*KNOWN.values(), *ALIASES]))}",
            param="model",
        )
    return found


def pre_tokenizer_of(name: str) -> dict[str, Any]:
    """The `pre_tokenizer` entry of a tokenizer.json that splits text as llama.cpp does under a name in KNOWN."""
    return {"type": "Sequence", "pretokenizers": [_step(rule) for rule in _rules_of(name) if rule != WHOLE_FIRST]}


def takes_whole_first(name: str) -> bool:
    """What `ignore_merges` is in the tokenizer.json of a name in KNOWN."""
    return WHOLE_FIRST in _rules_of(name)


def _rules_of(name: str) -> Rule:
    return next(rules for rules, known in KNOWN.items() if known == name)


def _step(rule: str) -> dict[str, Any]:
    """The inverse of `_rule`, for the rules in KNOWN."""
    kind, _, detail = rule.partition(":")
    if kind == "Split":
        return {"type": "Split", "pattern": {"Regex": detail}, "behavior": "Isolated", "invert": False}
    if kind == "Digits":
        return {"type": "Digits", "individual_digits": True}
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": rule != "ByteLevel"}


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
