"""Reads an upload (multipart/form-data, RFC 7578) as it arrives, its file straight into the data folder."""

from __future__ import annotations

from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.domain.errors import InvalidParameter, InvalidRequest, UnsupportedField
from app.domain.files import clean_filename, parse_purpose, require_fitting_name
from app.storage.files import StagedFile

MAX_VALUE_BYTES: Final = 1024


def boundary_of(content_type: str | None) -> bytes:
    """The boundary that a request's content type states. Raises InvalidRequest."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(
            f"content type {content_type!r} cannot carry a file; send multipart/form-data with the fields "
            "`file` and `purpose`"
        )
    return options[b"boundary"]


class UploadForm:
    """A form with the fields `file` and `purpose`, in any order, fed piece by piece.

    A wrong field is refused as soon as it is known, before the rest of the form has come.
    """

    def __init__(self, boundary: bytes, staged: StagedFile) -> None:
        self.filename = ""
        self.purpose = ""
        self._staged = staged
        self._ended = False
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._field = ""
        self._value = bytearray()
        callbacks = {
            "on_header_begin": self._on_header_begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a TypedDict of these
        except FormParserError as error:
            raise InvalidRequest(f"the form's boundary is invalid: {error}") from error

    def feed(self, data: bytes) -> None:
        """Raises InvalidRequest, InvalidParameter, UnsupportedField, UploadTooLarge or DiskFull."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest(f"the body is no valid multipart/form-data: {error}") from error

    def finish(self) -> None:
        """Raises InvalidRequest for a form that was cut off, InvalidParameter for one that lacks a field."""
        if not self._ended:
            raise InvalidRequest("the body ended before the form's last boundary; send the whole form again")
        for name, value in (("file", self.filename), ("purpose", self.purpose)):
            if not value:
                raise InvalidParameter(f"field `{name}` is missing; send a form with `file` and `purpose`", param=name)

    def _on_header_begin(self) -> None:
        self._header = (bytearray(), bytearray())

    def _on_header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._disposition, self._value = b"", bytearray()
        self._field = _text(options.get(b"name", b""))
        if self._field == "file":
            self._begin_file(_text(options.get(b"filename", b"")))
        elif self._field != "purpose":
            raise UnsupportedField(
                f"field {self._field!r} is not supported; send a form with `file` and `purpose`", param=self._field
            )

    def _begin_file(self, filename: str) -> None:
        if not filename:
            raise InvalidParameter("`file` must be a file with a name, not a plain value", param="file")
        if self.filename:
            raise InvalidParameter("the form has two files; send each in a request of its own", param="file")
        self.filename = clean_filename(filename)
        self._check_together()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            self._staged.write(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_VALUE_BYTES:
            raise InvalidParameter(f"`purpose` has more than {MAX_VALUE_BYTES} bytes; send one word", param="purpose")

    def _on_part_end(self) -> None:
        if self._field == "purpose":
            self.purpose = _text(bytes(self._value))
            parse_purpose(self.purpose)
            self._check_together()

    def _check_together(self) -> None:
        if self.filename and self.purpose:
            require_fitting_name(self.filename, parse_purpose(self.purpose))

    def _on_end(self) -> None:
        self._ended = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
