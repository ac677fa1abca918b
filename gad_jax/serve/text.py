"""Tokens to text, one token at a time: whole characters only, and nothing of a stop string.

The text is that of `Chat.decode`: with the tags of thoughts, which `thoughts.Splitter` parts.
"""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from gad_jax.data.chat import Chat

CONTEXT = 8
"""Tokens of a plain prompt that its continuation is decoded after: more than a character has."""


class TextStream:
    """The text of one answer as it grows.

    Half a character, what may be the beginning of a stop string, and the blanks that the chat
    template writes around an answer are held back until the next tokens decide.
    """

    def __init__(
        self, chat: Chat, stops: Sequence[str] = (), after: Sequence[int] | None = None
    ) -> None:
        """`after` are the tokens of a plain prompt: its continuation is shown as it is, with the
        blank that it begins with."""
        self._tokenizer = chat.tokenizer.backend_tokenizer
        self._tags = chat.encoder.tags
        if after is None:
            self._decoding = DecodeStream(skip_special_tokens=True)
            self._lead, self._tail = chat.shown_lead, chat.shown_tail
        else:
            ids = self._whole_end(after)
            self._decoding = DecodeStream(ids=ids or None, skip_special_tokens=True)
            self._lead = self._tail = ""
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def _whole_end(self, tokens: Sequence[int]) -> list[int]:
        """Returns the last tokens without half characters, which would be shown with the answer."""
        for place in range(max(len(tokens) - CONTEXT, 0), len(tokens)):
            end = [*tokens[place:]]
            if "\N{REPLACEMENT CHARACTER}" not in self._tokenizer.decode(end):
                return end
        return []

    def push(self, token: int) -> str:
        """Returns the text that a token adds: none after a stop string, which sets `stopped`."""
        if self.stopped:
            return ""
        self._held += self._decode(token)
        if self._lead:
            if self._lead != self._held and self._lead.startswith(self._held):
                return ""
            self._held, self._lead = self._held.removeprefix(self._lead), ""
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            text, self._held = self._held[: min(places)], ""
            return text
        held = max(map(self._beginning, self._stops), default=0)
        if self._tail and self._held.endswith(self._tail):
            held = max(held, len(self._tail))
        return self._release(len(self._held) - held)

    def _decode(self, token: int) -> str:
        if token in self._tags:
            self._decoding = DecodeStream(skip_special_tokens=True)
            return self._tags[token]
        try:
            return self._decoding.step(self._tokenizer, token) or ""
        except Exception:
            # Invalid UTF-8: the token changed how the bytes before it decode, so start anew.
            self._decoding = DecodeStream(skip_special_tokens=True)
            return self._decoding.step(self._tokenizer, token) or ""

    def end(self, finished: bool = True) -> str:
        """Returns the rest, which was held back for a stop string that did not come.

        `finished` is False for an answer that was cut.
        """
        if finished and self._tail:
            self._held = self._held.removesuffix(self._tail)
        return self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _beginning(self, stop: str) -> int:
        """Returns how many of the last characters are the beginning of the stop string."""
        most = min(len(stop) - 1, len(self._held))
        return next((n for n in range(most, 0, -1) if self._held.endswith(stop[:n])), 0)
