"""Run by the other environment's Python: writes tokenizer.model, which llama.cpp's converter wants to see.

`python sentencepiece_model.py tokens.json tokenizer.model`; the first holds a list of [text, score, type].
"""

import json
import sys
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2

model = sentencepiece_model_pb2.ModelProto()
model.trainer_spec.model_type = 2  # BPE
model.trainer_spec.byte_fallback = True
for text, score, kind in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    piece = model.pieces.add()
    piece.piece, piece.score, piece.type = text, score, kind
Path(sys.argv[2]).write_bytes(model.SerializeToString())
