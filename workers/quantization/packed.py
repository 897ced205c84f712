"""What GPTQ and AWQ share: gptqmodel does the work, layer by layer, and writes both layouts."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

import torch

# Read when the library is imported: with its own default it starts more threads than small machines have cores.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(os.cpu_count() or 1))

from gptqmodel import BACKEND, GPTQModel
from gptqmodel.looper.checkpoint_store import CheckpointConfig, CheckpointError

from app.domain.artifacts import QuantizationReport
from app.domain.errors import UnsupportedArchitecture
from app.storage.checkpoints import Checkpoint
from app.storage.tensor_headers import read_tensor_infos
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import JobRun
from workers.quantization.casting import require_finite
from workers.quantization.checkpoints.reader import copy_companions, read_tensor
from workers.quantization.streaming import model_dtype

log = logging.getLogger(__name__)

BATCH: Final = 4
# A checkpoint takes about a fifth of a second however little there is to keep: small layers share one.
CHECKPOINT_BYTES: Final = 32 * 1024**2


class LayerProgress:
    """Told by gptqmodel of each finished layer."""

    def __init__(self, run: JobRun, layers: int, stage: str) -> None:
        self.run = run
        self.layers = layers
        self.stage = stage

    def layer_complete(self, layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            # An output head that is quantized too comes last, as a layer more.
            self.run.report(min((layer_idx + 1) / self.layers, 1.0), self.stage)


def quantize_packed(
    source: Checkpoint,
    target: Path,
    config: Any,
    calibration: CalibrationSet,
    run: JobRun,
    *,
    backend: BACKEND = BACKEND.AUTO,
    resumable: bool = False,
) -> None:
    """Writes the quantized model into `target`. Raises UnsupportedArchitecture.

    `config` is gptqmodel's. A resumable run keeps checkpoints between layers and goes on from the last.
    """
    # The other way of packing would compile C++ here and now, for which servers need have no compiler.
    config.pack_impl = "original"
    config.offload_to_disk_path = str(target.parent / "offload")
    run.report(0.0, "loading the model")
    checkpoint = _checkpoints(source, run) if resumable else None
    try:
        model = _quantized(source, target, config, calibration, run, backend, checkpoint)
    except CheckpointError as error:
        # Another GPU, say: what was kept is of no use here, and the work can be done without it.
        log.warning("starting over without the kept layers: %s", error)
        model = _quantized(source, target, config, calibration, run, backend, None)
    run.report(1.0, "writing the model")
    model.save(str(target), max_shard_size=run.max_shard_bytes)
    _tidy(source, target)


def _checkpoints(source: Checkpoint, run: JobRun) -> CheckpointConfig:
    layer_bytes = source.weight_bytes // source.config["num_hidden_layers"]
    layers = max(1, CHECKPOINT_BYTES // max(layer_bytes, 1))
    return CheckpointConfig(path=run.checkpoints / "layers", interval=f"layer:{layers}")


def _quantized(
    source: Checkpoint,
    target: Path,
    config: Any,
    calibration: CalibrationSet,
    run: JobRun,
    backend: BACKEND,
    checkpoint: CheckpointConfig | None,
) -> Any:
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        model = GPTQModel.load(str(source.path), config, device=device, dtype=model_dtype(source))
    except (TypeError, NotImplementedError) as error:
        raise UnsupportedArchitecture(f"gptqmodel knows no {source.architecture}: {error}", param="model") from error
    layers = source.config["num_hidden_layers"]
    model.layer_callback = LayerProgress(run, layers, f"quantizing {layers} layers")
    with chdir(target.parent):  # the library writes a folder of logs wherever it stands
        model.quantize(_examples(calibration), batch_size=BATCH, backend=backend, checkpoint=checkpoint)
    return model


def _examples(calibration: CalibrationSet) -> list[dict[str, torch.Tensor]]:
    rows = torch.from_numpy(calibration.windows)
    return [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]


def _tidy(source: Checkpoint, target: Path) -> None:
    """Keeps weights and configuration; the tokenizer is the source's own, not the library's copy of it."""
    shutil.rmtree(target.parent / "offload", ignore_errors=True)
    for path in target.iterdir():
        if path.name not in ("config.json", "quantize_config.json") and ".safetensors" not in path.name:
            path.unlink()
    _rewrite(target / "config.json", lambda config: _without_run(config["quantization_config"]))
    _rewrite(target / "quantize_config.json", _without_run)
    copy_companions(source.path, target)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _without_run(config: dict[str, Any]) -> None:
    """Leaves out what describes the run, such as its folders, and not the model."""
    config["meta"] = {"quantizer": config["meta"]["quantizer"]}


def report_packed(
    source: Checkpoint, target: Path, type_of: Callable[[str], str], calibration: CalibrationSet
) -> QuantizationReport:
    """Counts what was really packed. `type_of` names the type of a module's weight.

    Raises IncompatibleModel for a tensor that became infinite: the library casts to float16 without a look.
    """
    stored = {
        name: info for file in sorted(target.glob("*.safetensors")) for name, info in read_tensor_infos(file).items()
    }
    for name, info in stored.items():
        require_finite(name, read_tensor(info))
    types: Counter[str] = Counter()
    for name in source.tensors:
        module = name.removesuffix(".weight")
        if f"{module}.qweight" in stored:
            types[type_of(module)] += 1
        elif name in stored:
            types[stored[name].dtype] += 1
    return QuantizationReport(
        tensor_types=dict(types),
        parameter_count=source.parameter_count,
        weight_bytes=sum(info.end - info.start for info in stored.values()),
        calibration=calibration.record,
    )
