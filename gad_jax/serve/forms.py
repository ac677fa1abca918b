"""The shapes of responses: chat completions, and completions of plain prompts."""

import codecs
import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gad_jax.serve import pieces
from gad_jax.serve.pieces import Pieces

Drawn = tuple[int, float]
"""A token and its log-prob."""


@dataclass(frozen=True)
class Chunk:
    """What a token adds to a choice; the last chunk of a choice has a reason."""

    choice: int
    text: str = ""
    thoughts: str = ""
    drawn: tuple[Drawn, ...] = ()
    tokens: int = 0
    reason: str = ""


@dataclass(frozen=True)
class ChatForm:
    """Chat completions; log-probs where `pieces` are given."""

    pieces: Pieces | None

    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    part_kind = "chat.completion.chunk"

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Returns a choice of a response that is not streamed."""
        text = "".join(chunk.text for chunk in chunks)
        said = "".join(chunk.thoughts for chunk in chunks)
        return {
            "index": chunks[0].choice,
            "message": message(text, said),
            "logprobs": self._logprobs([one for chunk in chunks for one in chunk.drawn]),
            "finish_reason": chunks[-1].reason,
        }

    def opening(self, choice: int) -> dict[str, Any]:
        """Returns the first event of a streamed choice."""
        return self._event(choice, {"role": "assistant", "content": ""}, None, None)

    def part(self, chunk: Chunk) -> dict[str, Any]:
        """Returns the event of a chunk."""
        delta = {"content": chunk.text} if chunk.text else {}
        delta |= {"reasoning_content": chunk.thoughts} if chunk.thoughts else {}
        logprobs = self._logprobs(chunk.drawn)
        return self._event(chunk.choice, delta, logprobs, chunk.reason or None)

    def _event(self, choice: int, delta: Any, logprobs: Any, reason: Any) -> dict[str, Any]:
        return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        if self.pieces is None:
            return None
        return {"content": [logprob(self.pieces, *one) for one in drawn]}


class CompletionForm:
    """Completions of plain prompts, one text for each choice; log-probs where `pieces` are given.

    `echoed` are the prompts' texts by choice, if they are to be returned.
    """

    prefix = "cmpl"
    whole_kind = part_kind = "text_completion"

    def __init__(self, pieces: Pieces | None, echoed: Sequence[str]) -> None:
        self.pieces, self.echoed = pieces, echoed
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = collections.defaultdict[int, Any](lambda: decoder("replace"))
        self._offsets = collections.Counter[int]()  # characters of each choice so far

    def whole(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Returns a choice of a response that is not streamed."""
        choice = chunks[0].choice
        text = self._echo(choice) + "".join(chunk.text for chunk in chunks)
        logprobs = self._logprobs(choice, [one for chunk in chunks for one in chunk.drawn])
        return self._choice(choice, text, logprobs, chunks[-1].reason)

    def opening(self, choice: int) -> dict[str, Any] | None:
        """Returns the first event of a streamed choice: the prompt, if it is to be returned."""
        text = self._echo(choice)
        return self._choice(choice, text, None, None) if text else None

    def part(self, chunk: Chunk) -> dict[str, Any]:
        """Returns the event of a chunk."""
        logprobs = self._logprobs(chunk.choice, chunk.drawn)
        return self._choice(chunk.choice, chunk.text, logprobs, chunk.reason or None)

    def _choice(self, choice: int, text: str, logprobs: Any, reason: Any) -> dict[str, Any]:
        return {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _echo(self, choice: int) -> str:
        return self.echoed[choice] if self.echoed else ""

    def _logprobs(self, choice: int, drawn: Sequence[Drawn]) -> dict[str, Any] | None:
        if self.pieces is None:
            return None
        tokens, offsets = [], []
        for token, _ in drawn:
            content = self.pieces.bytes_of(token)
            offsets.append(self._begin(choice, content))
            text = pieces.as_text(content)
            tokens.append(text if text.encode() == content else f"bytes:{text}")
        return {
            "tokens": tokens,
            "token_logprobs": [one for _, one in drawn],
            "top_logprobs": None,
            "text_offset": offsets,
        }

    def _begin(self, choice: int, content: bytes) -> int:
        """Returns the character of the choice's text that the next token begins in."""
        decoder, begin = self._decoders[choice], self._offsets[choice]
        waiting, _ = decoder.getstate()
        text = decoder.decode(content)
        self._offsets[choice] += len(text)
        # Bytes that this token does not complete are a character of their own.
        return begin + bool(waiting and text.startswith("\N{REPLACEMENT CHARACTER}"))


Form = ChatForm | CompletionForm


def logprob(vocabulary: Pieces, token: int, value: float) -> dict[str, Any]:
    """Returns a token's entry in the log-probs of a chat completion."""
    content = vocabulary.bytes_of(token)
    return {
        "token": pieces.as_text(content),
        "logprob": value,
        "bytes": list(content),
        "top_logprobs": [],
    }


def message(content: str, said: str) -> dict[str, Any]:
    """Returns the message of a choice with its thoughts; one that only thinks has no content."""
    if not said:
        return {"role": "assistant", "content": content}
    return {"role": "assistant", "reasoning_content": said, "content": content or None}


def data(content: Any) -> bytes:
    """Returns a server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
