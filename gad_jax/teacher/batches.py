"""A provider's batch mode (OpenAI's Batch API): requests in a file, responses within a day.

The connection may drop after the provider has created a batch. To send `create` again would then
pay twice. So each batch carries a `name` of ours, by which `find` sees whether it exists.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gad_jax.base.errors import UserError
from gad_jax.teacher import batch_format, wire
from gad_jax.teacher.batch_format import BatchResponse, BatchStatus
from gad_jax.teacher.client import Client, PromptRefused, Rejected, Unanswered
from gad_jax.teacher.failures import Follows
from gad_jax.teacher.wire import BadResponse, BrokenOff, Reply

COMPLETIONS = "/v1/chat/completions"
"""The API's name for the endpoint, whatever the base URL."""

WINDOW = "24h"
PAGE = 100
MAX_FILE_BYTES = 2**30
_NAME = "gad_jax"


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch; its response carries the same `custom_id`."""

    custom_id: str
    body: dict[str, Any]

    def line(self) -> bytes:
        """Returns the request's line in the file."""
        record = {"custom_id": self.custom_id, "method": "POST", "url": COMPLETIONS}
        return json.dumps(record | {"body": self.body}).encode() + b"\n"


async def create(client: Client, name: str, requests: Iterable[BatchRequest]) -> str:
    """Uploads the requests and creates a batch of them with this `name`; returns its id.

    Raises Unanswered when the batch may or may not exist; `find` tells.
    """
    content = b"".join(request.line() for request in requests)
    upload = {"files": {"file": (f"{name}.jsonl", content)}, "data": {"purpose": "batch"}}
    try:
        file = await client.request("POST", "files", batch_format.read_file_id, **upload)
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
        "POST", "batches", batch_format.read_batch, attempts=1, json=body, headers=headers
    )
    return made.id


async def find(client: Client, name: str) -> str:
    """Returns the id of the batch with this `name`, empty if there is none."""
    after: dict[str, Any] = {}
    more = True
    while more:
        params = {"limit": PAGE, **after}
        page, more = await client.request(
            "GET", "batches", batch_format.read_batches, params=params
        )
        for batch in page:
            if (batch.metadata or {}).get(_NAME) == name:
                return batch.id
        after = {"after": page[-1].id} if page else {}
    return ""


async def status(client: Client, batch: str) -> BatchStatus:
    """Returns the provider's status of a batch."""
    return await client.request("GET", f"batches/{batch}", batch_format.read_batch)


async def responses(client: Client, batch: BatchStatus) -> list[BatchResponse]:
    """Returns the responses to the requests of a batch that has ended, in any order."""
    files = [file for file in (batch.output_file_id, batch.error_file_id) if file]
    return [
        response
        for file in files
        for response in await client.request(
            "GET",
            f"files/{file}/content",
            batch_format.read_batch_responses,
            most_bytes=MAX_FILE_BYTES,
        )
    ]


def read(response: BatchResponse) -> Reply:
    """Returns the reply in one response. Raises PromptRefused, Rejected or Unanswered, as
    `Client.chat`."""
    status, failure = response.status, wire.read_failure(response.body)
    if 200 <= status < 300:
        try:
            return wire.read_reply(response.body)
        except BrokenOff as error:
            status, failure = error.failure.status, error.failure
        except BadResponse as error:
            raise Unanswered(str(error)) from None
    reason = f"status {status}: {failure.words}" if status else failure.words or "not asked"
    follows = failure.follows(status)
    if follows is Follows.PROMPT:
        raise PromptRefused(reason)
    if follows is Follows.DOUBT:
        raise Rejected(reason, reason)
    raise Unanswered(reason)
