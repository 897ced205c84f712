"""Where each method's implementation lives. Imported on demand: an ML library loads when it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from app.domain.errors import MethodUnavailable
from workers.quantization.base import QuantizationMethod

REGISTRY: Final[dict[str, str]] = {
    "none": "workers.quantization.methods.none:NoneMethod",
    "bitsandbytes": "workers.quantization.methods.bitsandbytes:BitsAndBytesMethod",
    "fp8": "workers.quantization.methods.fp8:Fp8Method",
    "fp4": "workers.quantization.methods.fp4:Fp4Method",
    "int8": "workers.quantization.methods.int8:Int8Method",
    "int4": "workers.quantization.methods.int4:Int4Method",
    "gptq": "workers.quantization.methods.gptq:GptqMethod",
    "awq": "workers.quantization.methods.awq:AwqMethod",
    "autoround": "workers.quantization.methods.autoround:AutoRoundMethod",
    "hqq": "workers.quantization.methods.hqq:HqqMethod",
    "gguf": "workers.quantization.methods.gguf:GgufMethod",
    "qat": "workers.quantization.methods.qat:QatMethod",
}


# The extra of Bitmill's that brings a method's libraries; the others come with `worker`.
EXTRAS: Final = {"gptq": "gptq", "awq": "gptq", "autoround": "autoround", "hqq": "hqq"}


def load_method(name: str) -> QuantizationMethod[Any]:
    """Raises MethodUnavailable, saying what to install, where a library that the method stands on is missing."""
    module, _, attribute = REGISTRY[name].partition(":")
    try:
        method: QuantizationMethod[Any] = getattr(import_module(module), attribute)()
    except ImportError as error:
        raise MethodUnavailable(
            f"method {name!r} cannot run on this worker ({error}); install what it needs: "
            f"pip install 'bitmill[{EXTRAS.get(name, 'worker')}]'",
            param="method.type",
        ) from error
    return method
