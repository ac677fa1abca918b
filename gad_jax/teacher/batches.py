"""A provider's batch mode (OpenAI's Batch API): requests in a file, answers within a day.

`create` may be answered by a lost connection although the batch was made, and would be paid twice
if it were simply sent again: a batch carries a `name` of ours, by which `find` sees whether it is
there.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.base.redaction import redact
from gad_jax.teacher import wire
from gad_jax.teacher.client import Client, PromptRefused, Unanswered, is_about_the_prompt
from gad_jax.teacher.wire import BadBody, BatchAnswer, BatchStatus, Reply

COMPLETIONS = "/v1/chat/completions"
"""What the API calls the endpoint, wherever it is."""

WINDOW = "24h"
PAGE = 100
MAX_FILE_BYTES = 2**30
_NAME = "gad_jax"


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch; `custom_id` comes back with its answer."""

    custom_id: str
    body: dict[str, Any]

    def line(self) -> bytes:
        """Returns its line in the file."""
        record = {"custom_id": self.custom_id, "method": "POST", "url": COMPLETIONS}
        return json.dumps(record | {"body": self.body}).encode() + b"\n"


async def create(client: Client, name: str, requests: Iterable[BatchRequest]) -> str:
    """Uploads the requests and makes a batch of them, called `name`; returns its id.

    Raises Unanswered when it may or may not have been made, which `find` tells.
    """
    content = b"".join(request.line() for request in requests)
    upload = {"files": {"file": (f"{name}.jsonl", content)}, "data": {"purpose": "batch"}}
    try:
        file = await client.request("POST", "files", wire.read_file_id, **upload)
    except PromptRefused as error:
        raise UserError(f"the batch was not taken ({error}); lower --batch_requests") from None
    body = {
        "input_file_id": file,
        "endpoint": COMPLETIONS,
        "completion_window": WINDOW,
        "metadata": {_NAME: name},
    }
    headers = {"Idempotency-Key": name}
    made = await client.request(
        "POST", "batches", wire.read_batch, attempts=1, json=body, headers=headers
    )
    return made.id


async def find(client: Client, name: str) -> str:
    """Returns the id of the batch called `name`, empty if there is none."""
    after: dict[str, Any] = {}
    more = True
    while more:
        params = {"limit": PAGE, **after}
        page, more = await client.request("GET", "batches", wire.read_batches, params=params)
        for batch in page:
            if (batch.metadata or {}).get(_NAME) == name:
                return batch.id
        after = {"after": page[-1].id} if page else {}
    return ""


async def status(client: Client, batch: str) -> BatchStatus:
    """Returns what the provider says of a batch."""
    return await client.request("GET", f"batches/{batch}", wire.read_batch)


async def answers(client: Client, batch: BatchStatus) -> list[BatchAnswer]:
    """Returns what came of the requests of a batch that has ended, in any order."""
    files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
    return [
        answer
        for file in files
        for answer in await client.request(
            "GET", f"files/{file}/content", wire.read_batch_answers, most_bytes=MAX_FILE_BYTES
        )
    ]


def read(answer: BatchAnswer) -> Reply:
    """Returns the reply in one answer. Raises PromptRefused or Unanswered, as `Client.chat`."""
    if 200 <= answer.status < 300:
        try:
            return wire.read_reply(answer.body)
        except BadBody as error:
            raise Unanswered(str(error)) from None
    code, message = wire.read_failure(answer.body)
    said = redact(" ".join((message or code).split()))[:300]
    if is_about_the_prompt(answer.status, code):
        raise PromptRefused(f"status {answer.status}: {said}")
    raise Unanswered(f"status {answer.status}: {said}" if answer.status else said or "not asked")
