"""From calibration parameters to token windows for one model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from app.domain.errors import InvalidParameter
from app.domain.quantization.calibration import SELF, CalibrationParams
from app.storage.checkpoints import Checkpoint
from workers.calibration.self_generated import generate_windows
from workers.calibration.texts import Document
from workers.calibration.windows import CalibrationSet, choose_windows, make_set

Report = Callable[[float, str], None]


def load_calibration(
    source: Checkpoint, params: CalibrationParams, documents: Iterable[Document], report: Report
) -> CalibrationSet:
    """Windows of the model's own token ids. Raises InvalidParameter where the text does not suffice."""
    if params.dataset == SELF:
        return make_set(generate_windows(source, params, report), params)
    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
    return choose_windows(_tokenize(tokenizer, documents), params)


def _tokenize(tokenizer: Any, documents: Iterable[Document]) -> npt.NDArray[np.int64]:
    """All documents in a row, each begun as the tokenizer begins text."""
    ids: list[int] = []
    for document in documents:
        if isinstance(document, str):
            # Quiet: a document may be longer than the context, since it is cut into windows.
            ids += tokenizer.encode(document, verbose=False)
        else:
            ids += _conversation(tokenizer, document)
    return np.array(ids, dtype=np.int64)


def _conversation(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    if not tokenizer.chat_template:
        raise InvalidParameter(
            "the calibration data holds conversations and the model has no chat template; give plain text",
            param="method.calibration.dataset",
        )
    try:
        return list(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"])
    except TemplateError as error:
        raise InvalidParameter(
            f"the model's chat template refuses a conversation of the calibration data: {error}",
            param="method.calibration.dataset",
        ) from error
