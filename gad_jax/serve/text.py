"""From tokens that come one by one to text that may be shown: whole characters, no stop string."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from gad_jax.data.chat import Chat


class TextStream:
    """The text of one answer as it grows. What may turn out to be the beginning of a stop string,
    or is half a character, is held back until that is known."""

    def __init__(self, chat: Chat, stops: Sequence[str] = ()) -> None:
        self._tokenizer = chat.tokenizer.backend_tokenizer
        self._decoding = DecodeStream(skip_special_tokens=True)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Returns what a token adds; nothing once `stopped`, which a stop string has done."""
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
            # Where text before the token reads otherwise beside it, the stream cannot go on.
            self._decoding = DecodeStream(skip_special_tokens=True)
            return self._decoding.step(self._tokenizer, token) or ""

    def end(self) -> str:
        """Returns what was held back for a stop string that did not come."""
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _beginning(self, stop: str) -> int:
        """Returns how many of the last characters are the beginning of the stop string."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
