"""A network that answers conversations: text in, text out."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.data.chat import Chat, Conversation
from gad_jax.models.config import DecoderConfig
from gad_jax.rollout import engine, prefill
from gad_jax.rollout.sampling import Sampler
from gad_jax.settings.decoding import Decoding
from gad_jax.types import Params


class Answer(NamedTuple):
    """One answer, without the thoughts before it.

    `tokens` counts the answer's tokens with the end token; an answer that was cut (not finished)
    has none. A response that was cut inside a thought has an empty answer of no tokens.
    """

    text: str
    tokens: int
    finished: bool
    thoughts: str = ""
    thought_tokens: int = 0


class Responder:
    """Answers conversations with one network; its decode copy of the weights is made once.

    `slots`, `longest` and `resizes` are those of `RolloutProgram`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        chat: Chat,
        mesh: jax.sharding.Mesh,
        decoding: Decoding,
        slots: int = 0,
        longest: int = 0,
        resizes: bool = True,
    ) -> None:
        chat.check_vocabulary(config.vocabulary)
        self.config, self.params, self.chat, self.mesh = config, params, chat, mesh
        self.program = engine.RolloutProgram(
            decoding.samples,
            decoding.max_new_tokens,
            chat.end_tokens,
            chat.pad_token,
            Sampler(decoding.temperature, decoding.top_k, decoding.top_p),
            slots=slots,
            longest=longest,
            resizes=resizes,
        )
        self.weights = prefill.decode_copy(config, params)
        self.key = jax.random.key(decoding.seed)
        self.answered = 0

    def __call__(self, conversations: Sequence[Conversation]) -> list[list[str]]:
        """Returns the answers to each conversation. Raises UserError for one that is too long."""
        return [[answer.text for answer in group] for group in self.ask(conversations)]

    def ask(self, conversations: Sequence[Conversation]) -> list[list[Answer]]:
        """Returns the answers to each conversation, with their thoughts. Raises as a call does."""
        if not conversations:
            return []
        prompts = self.encode(conversations)
        if self.longest_prompt < 1:
            raise UserError(
                f"--max_new_tokens={self.program.max_new_tokens} leaves no room for a prompt in "
                f"the model's {self.config.max_positions} positions; lower it"
            )
        for prompt in prompts:
            if len(prompt) > self.longest_prompt:
                raise UserError(
                    f"a prompt has {len(prompt)} tokens, and {self.longest_prompt} fit next to "
                    f"--max_new_tokens={self.program.max_new_tokens}; shorten it or lower that"
                )
        numbers = range(self.answered, self.answered + len(prompts))
        self.answered += len(prompts)
        return self.answers(prompts, numbers)

    @property
    def longest_prompt(self) -> int:
        """The most prompt tokens that leave room for the longest answer."""
        return self.config.max_positions - self.program.max_new_tokens

    def encode(self, conversations: Sequence[Conversation]) -> list[np.ndarray]:
        """Returns the tokens of each conversation up to where the answer begins."""
        return [np.asarray(tokens, np.int32) for tokens in self.chat.encode_prompts(conversations)]

    def answers(self, prompts: list[np.ndarray], numbers: Sequence[int]) -> list[list[Answer]]:
        """Returns the answers to each encoded prompt.

        What is sampled depends on the seed and the prompt's number, not on the other prompts.
        """
        rollout = engine.generate(
            self.config,
            self.params,
            prompts,
            np.asarray(numbers, np.int32),
            self.key,
            self.program,
            self.mesh,
            self.weights,
        )
        groups = zip(rollout.tokens, rollout.lengths, rollout.finished, strict=True)
        return [
            [
                self._answer(tokens[:length].tolist(), bool(finished))
                for tokens, length, finished in zip(*group, strict=True)
            ]
            for group in groups
        ]

    def _answer(self, tokens: list[int], finished: bool) -> Answer:
        found = self.chat.reply(tokens)
        if not found.thoughts and found.finished:
            return Answer(found.answer, len(tokens), finished)
        answered = len(self.chat.encoder.continuation([found.answer])[0]) + finished
        answered = min(answered, len(tokens)) if found.finished else 0
        return Answer(
            found.answer, answered, finished, found.thoughts, thought_tokens=len(tokens) - answered
        )
