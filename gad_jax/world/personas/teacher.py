"""The teacher: one network under hidden system prompts, a persona drawn for each answer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from gad_jax.data.chat import Conversation
from gad_jax.world.personas import mixture
from gad_jax.world.personas.mixture import Persona
from gad_jax.world.personas.policy import Policy, Responses


class Drawn(NamedTuple):
    """One answer: its persona's place, its tokens, and whether it ended by itself."""

    persona: int
    tokens: np.ndarray
    finished: bool


class Teacher:
    """A mixture of personas with exact log-probabilities; `policy` has its temperature."""

    def __init__(self, policy: Policy, personas: Sequence[Persona]) -> None:
        self.policy, self.personas = policy, personas

    def draw(
        self, conversations: Sequence[Conversation], numbers: Sequence[int], key: Array
    ) -> list[Drawn]:
        """Returns an answer to each conversation. Persona and answer depend on the key and on the
        conversation's number alone."""
        shares = [persona.share for persona in self.personas]
        seed = int(jax.random.bits(jax.random.fold_in(key, 1)))
        chosen = [
            int(np.random.default_rng((seed, number)).choice(len(shares), p=shares))
            for number in numbers
        ]
        prompts = self.policy.encode(
            [
                self.personas[place].conversation(conversation)
                for place, conversation in zip(chosen, conversations, strict=True)
            ]
        )
        found = self.policy.sample(prompts, numbers, 1, jax.random.fold_in(key, 0))
        groups = zip(chosen, found.tokens, found.finished, strict=True)
        return [Drawn(place, group[0], bool(ended[0])) for place, group, ended in groups]

    def joint(
        self, conversations: Sequence[Conversation], responses: Responses
    ) -> Float[np.ndarray, "B N K"]:
        """Returns log(π_k p(y | system_k, x)) of each response y to each conversation x."""
        conditional = [
            self.policy.log_probabilities(
                self.policy.encode([persona.conversation(c) for c in conversations]), responses
            )
            for persona in self.personas
        ]
        return mixture.joint(np.stack(conditional, axis=-1), self.personas)
