#!/usr/bin/env bash
# torchao 0.18.0 with torch 2.13.0: a row of zeros in a weight becomes a row of NaN in float8.
#
# Expected: it comes back as zeros, which both formats hold exactly. Rows of zeros are usual: pruned neurons, padded
# vocabularies, experts that never fired.
# Seen: quantized per row the row dequantizes to NaN, silently, in e4m3fn and e5m2, from bfloat16 and from float32.
# Output seen:
#   bfloat16 to float8_e4m3fn: 16 NaN of 16
#   bfloat16 to float8_e5m2: 16 NaN of 16
#   float32 to float8_e4m3fn: 16 NaN of 16
#   float32 to float8_e5m2: 16 NaN of 16
#
# Exits with 0 while that is so, with 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0 torchao==0.18.0 numpy
cat > "$folder/show.py" <<'PYTHON'
import sys

import torch
from torchao.quantization import PerRow
from torchao.quantization.quantize_.workflows import Float8Tensor

torch.manual_seed(0)
found = []
for dtype in (torch.bfloat16, torch.float32):
    weight = torch.randn(4, 16, dtype=dtype)
    weight[2] = 0
    for target in (torch.float8_e4m3fn, torch.float8_e5m2):
        back = Float8Tensor.from_hp(weight, float8_dtype=target, granularity=PerRow()).dequantize()
        found.append(int(back[2].isnan().sum()))
        names = [str(each).removeprefix("torch.") for each in (dtype, target)]
        print(f"{names[0]} to {names[1]}: {found[-1]} NaN of 16")
sys.exit(0 if found == [16, 16, 16, 16] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { code=$?; tail -5 "$folder/log"; exit $code; }
