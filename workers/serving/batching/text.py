"""From tokens to text while they come: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """Feed it tokens with `push`; it returns the text that is certain by now."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        # Tokens up to `_read` were turned into text; decoding starts a little earlier, at `_prefix`, because
        # a token's text may depend on the one before it.
        self._prefix = 0
        self._read = 0
        self._held = ""

    def push(self, tokens: Sequence[int]) -> str:
        self._tokens += tokens
        text = self._new_text()
        return self._release(text, final=False)

    def finish(self) -> str:
        """What was held back, incomplete characters included."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._prefix : self._read])
        rest = self._decode(self._tokens[self._prefix :])[len(before) :]
        return self._release(rest, final=True)

    def _new_text(self) -> str:
        before = self._decode(self._tokens[self._prefix : self._read])
        now = self._decode(self._tokens[self._prefix :])
        if len(now) <= len(before) or now.endswith(INCOMPLETE):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        kept = 0 if final else self._possible_stop(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _possible_stop(self, text: str) -> int:
        """The length of the longest end of `text` that may be the beginning of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
