"""Asking a model behind an OpenAI-compatible API: a teacher, or a judge.

`client` sends one request and checks what comes back; `pace` decides how many are on the way at
once. What is asked, stored or paid is the business of the caller.

    endpoint = Endpoint("https://api.example.com/v1", "some-model", "TEACHER_API_KEY")
    async with Client(endpoint) as client:
        reply = await client.chat([{"role": "user", "content": "Hello"}], {"temperature": 0})
        reply.completions[0].text
"""

from gad_jax.teacher.client import Client, Endpoint, Patience, PromptRefused, Unanswered
from gad_jax.teacher.pace import Pace
from gad_jax.teacher.wire import Completion, Reply, Usage

__all__ = [
    "Client",
    "Completion",
    "Endpoint",
    "Pace",
    "Patience",
    "PromptRefused",
    "Reply",
    "Unanswered",
    "Usage",
]
