"""Where each method's implementation lives. Imported on demand: an ML library loads when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from workers.quantization.base import QuantizationMethod

REGISTRY: Final[dict[str, str]] = {
    "none": "workers.quantization.methods.none:NoneMethod",
    "bitsandbytes": "workers.quantization.methods.bitsandbytes:BitsAndBytesMethod",
    "fp8": "workers.quantization.methods.fp8:Fp8Method",
    "fp4": "workers.quantization.methods.fp4:Fp4Method",
    "int8": "workers.quantization.methods.int8:Int8Method",
    "gptq": "workers.quantization.methods.gptq:GptqMethod",
    "awq": "workers.quantization.methods.awq:AwqMethod",
    "gguf": "workers.quantization.methods.gguf:GgufMethod",
}


def load_method(name: str) -> QuantizationMethod[Any]:
    """Raises ImportError where a library that the method stands on is missing."""
    module, _, attribute = REGISTRY[name].partition(":")
    method: QuantizationMethod[Any] = getattr(import_module(module), attribute)()
    return method
