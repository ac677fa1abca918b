"""Tokens to text, one token at a time: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from gad_jax.data.chat import Chat


class TextStream:
    """The text of one answer as it grows.

    Half a character, and what may be the beginning of a stop string, is held back until the next
    tokens decide.
    """

    def __init__(self, chat: Chat, stops: Sequence[str] = ()) -> None:
        self._tokenizer = chat.tokenizer.backend_tokenizer
        self._decoding = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Returns the text that a token adds: none after a stop string, which sets `stopped`."""
        if self.stopped:
            return ""
        self._held += self._decode(token)
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        return self._release(len(self._held) - max(map(self._beginning, self._stops), default=0))

    def _decode(self, token: int) -> str:
        try:
            return self._decoding.step(self._tokenizer, token) or ""
        except Exception:
            # Invalid UTF-8: the token changed how the bytes before it decode, so start anew.
            self._decoding = DecodeStream(skip_special_tokens=True)
            return self._decoding.step(self._tokenizer, token) or ""

    def end(self) -> str:
        """Returns the rest, which was held back for a stop string that did not come."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _beginning(self, stop: str) -> int:
        """Returns how many of the last characters are the beginning of the stop string."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
