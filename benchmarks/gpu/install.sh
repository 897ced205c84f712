#!/usr/bin/env bash
# On a machine without a network: `benchmarks/gpu/install.sh take FOLDER…` keeps the wheels of one or more trips, and
# `benchmarks/gpu/install.sh run [OPTIONS]` installs them all beside this machine's own packages and starts
# benchmarks/gpu.py with these options. PYTHON names the interpreter, BITMILL_GPU_FOLDER where everything is kept.
set -euo pipefail
kept=${BITMILL_GPU_FOLDER:-/tmp/bitmill-gpu}
python=${PYTHON:-python3}
site=$kept/site
mkdir -p "$kept/wheels"

take() {
    for folder in "$@"; do cp -r "$folder/." "$kept/wheels/"; done
    ls "$kept/wheels" | wc -l
}

join() {
    for first in "$kept"/wheels/*.part-000; do
        [ -e "$first" ] || return 0
        whole=${first%.part-000}
        cat "$whole".part-* > "$whole"
        rm "$whole".part-*
    done
}

run() {
    join
    if [ ! -d "$site" ]; then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$kept"/wheels/*.whl
    fi
    cd "$(dirname "$0")/../.."
    export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
    exec "$python" benchmarks/gpu.py "$@"
}

"$@"
