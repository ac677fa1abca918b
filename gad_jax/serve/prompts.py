"""From a request to the tokens of its prompts; what is too long is refused before it is encoded."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat
from gad_jax.serve.errors import Refused
from gad_jax.serve.pieces import Pieces
from gad_jax.serve.student import ServedStudent
from gad_jax.serve.wire import ChatRequest, CompletionRequest
from gad_jax.settings import template_arguments

SAMPLED_PER_TOKEN = 32
"""Characters for each token of the context, which are counted before more is encoded."""

FAR_TOO_LONG = 4
"""Times the context: a template may drop thoughts of earlier turns, but hardly that much."""

LONGEST_ARGUMENTS = 4096


class Prompts:
    """The prompts of a student. All methods take a while: they are for threads."""

    def __init__(self, student: ServedStudent, pieces: Pieces) -> None:
        self.student, self.pieces = student, pieces

    def of_chat(self, asked: ChatRequest) -> tuple[Chat, np.ndarray]:
        """Returns the chat of a request and its prompt. Raises Refused."""
        texts = [one.content or "" for one in asked.messages]
        self._judge(texts, asked.limit, "messages")
        chat = self._chat(asked.chat_template_kwargs or {})
        try:
            prompt = self.student.encode(asked.conversation, chat)
        except UserError as error:
            raise Refused(400, str(error), "invalid_request", "messages") from None
        self._check_room(len(prompt), asked.limit, "messages")
        return chat, prompt

    def of_completion(self, asked: CompletionRequest) -> list[np.ndarray]:
        """Returns the prompts of a request. Raises Refused."""
        special = asked.add_special_tokens is not False
        return [self._plain(prompt, special, asked.limit) for prompt in asked.prompt]

    def echoed(self, asked: CompletionRequest) -> list[str]:
        """Returns the prompt's text for each choice, if the request wants it back."""
        if not asked.echo:
            return []
        texts = [
            one
            if isinstance(one, str)
            else b"".join(map(self.pieces.bytes_of, one)).decode("utf-8", "replace")
            for one in asked.prompt
        ]
        return [text for text in texts for _ in range(asked.choices)]

    def _chat(self, arguments: Mapping[str, Any]) -> Chat:
        if len(template_arguments.show(arguments)) > LONGEST_ARGUMENTS:
            message = f"chat_template_kwargs has more than {LONGEST_ARGUMENTS} characters"
            raise Refused(400, message, "too_large", "chat_template_kwargs")
        try:
            return self.student.chat_with(arguments)
        except UserError as error:
            raise Refused(400, str(error), "invalid_request", "chat_template_kwargs") from None

    def _plain(self, prompt: str | list[int], special: bool, limit: int | None) -> np.ndarray:
        if isinstance(prompt, str):
            self._judge([prompt], limit, "prompt")
            prompt = self.student.encode_text(prompt, special)
        vocabulary = self.student.config.vocabulary
        if not prompt:
            raise Refused(400, "the prompt is empty; give a text or tokens", "empty", "prompt")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            message = f"token {str(wrong)[:20]} is not in the vocabulary of {vocabulary}"
            raise Refused(400, message, "invalid_token", "prompt")
        self._check_room(len(prompt), limit, "prompt")
        return np.asarray(prompt, np.int32)

    def _judge(self, texts: Sequence[str], limit: int | None, param: str) -> None:
        """Raises Refused for texts that cannot fit, in a time that does not grow with them."""
        context = self.student.context
        size = sum(len(text.encode()) for text in texts)
        if size > context * self.pieces.longest:
            raise self._too_long(f"more than {context}", limit, param)
        sampled = SAMPLED_PER_TOKEN * context
        if size > sampled:
            count = self.student.count_text("".join(texts)[:sampled])
            if count > FAR_TOO_LONG * context:
                raise self._too_long(f"more than {context}", limit, param)

    def _check_room(self, length: int, limit: int | None, param: str) -> None:
        if self.student.context - length < (limit or 1):
            raise self._too_long(str(length), limit, param, length < self.student.context)

    def _too_long(self, tokens: str, limit: int | None, param: str, fits: bool = False) -> Refused:
        """Returns the refusal of a prompt of so many tokens, which `fits` without its answer."""
        message = (
            f"the prompt has {tokens} tokens, and {self.student.context} are for it and its answer "
            f"of {limit or 'at least 1'}; shorten it{' or ask for a shorter answer' * fits}"
        )
        return Refused(400, message, "context_length_exceeded", param)
