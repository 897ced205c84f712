"""AutoRound by the auto-round package, in the layouts that GPTQ and AWQ have."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

import torch
from auto_round import AutoRound

from app.domain.artifacts import QuantizationReport
from app.domain.errors import QuantizationFailed
from app.domain.quantization.methods.autoround import SPEC, AutoRoundParams
from app.storage.checkpoints import Checkpoint
from workers.calibration.streamed_model import build_empty
from workers.calibration.windows import CalibrationSet
from workers.quantization.base import JobRun, Part, QuantizationMethod
from workers.quantization.checkpoints.reader import copy_companions
from workers.quantization.packed import report_packed
from workers.quantization.streaming import dtype_entry, write_config

BATCH: Final = 4
LAYOUTS: Final = {"gptq": "auto_gptq", "awq": "auto_awq"}
# What the library says in its log after each block.
BLOCK_DONE: Final = "layers in the block"


class BlockProgress(logging.Handler):
    """Counts tuned blocks by what the library logs, since it calls nobody back."""

    def __init__(self, run: JobRun, blocks: int) -> None:
        super().__init__(logging.INFO)
        self.run = run
        self.blocks = blocks
        self.done = 0

    def emit(self, record: logging.LogRecord) -> None:
        if BLOCK_DONE in record.getMessage():
            self.done = min(self.done + 1, self.blocks)
            self.run.report(self.done / self.blocks, f"tuning {self.blocks} blocks")


class AutoRoundMethod(QuantizationMethod[AutoRoundParams]):
    spec = SPEC

    def quantize(self, source: Checkpoint, target: Path, params: AutoRoundParams, run: JobRun) -> QuantizationReport:
        build_empty(source)  # for its error: the library's own says less of a model that transformers does not know
        calibration = run.calibration(params.calibration, Part(run, 0.0, 0.1).report)
        written = target / "written"
        _tune(source, written, params, calibration, Part(run, 0.1, 0.99))
        run.report(1.0, "writing the model")
        _move_up(source, written, target)
        return report_packed(source, target, lambda module: f"INT{params.bits}", calibration)


def _tune(source: Checkpoint, folder: Path, params: AutoRoundParams, calibration: CalibrationSet, run: JobRun) -> None:
    """Writes the library's result somewhere below `folder`."""
    run.report(0.0, "loading the model")
    logger = logging.getLogger("autoround")
    progress = BlockProgress(run, source.config["num_hidden_layers"])
    logger.addHandler(progress)
    try:
        with chdir(folder.parent.parent):  # the library keeps its work wherever it stands
            tuner = _tuner(source, params, calibration)
            tuner.quantize_and_save(str(folder), format=LAYOUTS[params.layout], max_shard_size=run.max_shard_bytes)
    except SystemExit as error:  # how the library says that it could not write
        raise QuantizationFailed(
            "auto-round gave up while it wrote the model; the worker's log of this job has its reason"
        ) from error
    finally:
        logger.removeHandler(progress)


def _tuner(source: Checkpoint, params: AutoRoundParams, calibration: CalibrationSet) -> Any:
    samples, length = calibration.windows.shape
    return AutoRound(
        str(source.path),
        scheme={"bits": params.bits, "group_size": params.group_size, "sym": params.symmetric, "data_type": "int"},
        format=LAYOUTS[params.layout],
        dataset=list(torch.from_numpy(calibration.windows).split(1)),
        iters=params.iterations,
        nsamples=samples,
        seqlen=length,
        batch_size=min(BATCH, samples),
        device_map="cuda:0" if torch.cuda.is_available() else "cpu",
        # Compiling takes longer than it saves on a small model, and needs a compiler.
        enable_torch_compile=False,
        trust_remote_code=False,
    )


def _move_up(source: Checkpoint, written: Path, target: Path) -> None:
    """Keeps weights and the way they are quantized; all else is the source's own."""
    (config,) = written.rglob("config.json")
    for path in config.parent.glob("*.safetensors*"):
        path.rename(target / path.name)
    quantization = json.loads(config.read_text())["quantization_config"]
    # The library stores what it does not quantize in 16-bit floating point, whatever the source had.
    write_config(source, target, {**dtype_entry(torch.float16), "quantization_config": quantization})
    shutil.rmtree(written)
    copy_companions(source.path, target)
