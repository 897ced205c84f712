"""What the files of a model on this disk tell of it before it is read."""

from __future__ import annotations

from app.domain.estimates import ModelShape
from app.domain.quantization.sizes import StoredTensor
from app.storage.checkpoints import Checkpoint
from app.storage.tensor_headers import TensorInfo


def shape_of_checkpoint(checkpoint: Checkpoint) -> ModelShape:
    tensors = {name: stored_tensor(info) for name, info in checkpoint.tensors.items()}
    return ModelShape(architecture=checkpoint.architecture, config=checkpoint.config, tensors=tensors)


def stored_tensor(info: TensorInfo) -> StoredTensor:
    return StoredTensor(dtype=info.dtype, shape=info.shape, size_bytes=info.end - info.start)
