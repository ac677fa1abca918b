"""The contract with the real google-jetstream: its driver and gRPC service, and our engine in them.

CI runs this in a separate environment, because the package is optional.
"""

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jetstream.core.proto.jetstream_pb2")

from gad_jax.serve import jetstream
from tests.serve.servers import Server, serving

pytest_plugins = ["tests.run_fixtures"]

messages = importlib.import_module("jetstream.core.proto.jetstream_pb2")
grpc, services = jetstream.grpc, jetstream.services

MODEL = "--model=random-tiny"
LIMIT = 24


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--protocol=jetstream", "--slots=3", "--context=512")
    with serving(MODEL, *flags) as running:
        yield running


def text(content: str, limit: int = LIMIT) -> Any:
    part = messages.DecodeRequest.TextContent(text=content)
    return messages.DecodeRequest(max_tokens=limit, text_content=part)


def tokens(content: list[int], limit: int = LIMIT) -> Any:
    part = messages.DecodeRequest.TokenContent(token_ids=content)
    return messages.DecodeRequest(max_tokens=limit, token_content=part)


async def answer(stub: Any, request: Any) -> tuple[str, list[int]]:
    said, ids = "", []
    async for response in stub.Decode(request):
        sample = response.stream_content.samples[0]
        said, ids = said + sample.text, ids + list(sample.token_ids)
    return said, ids


async def connected(server: Server) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield services.OrchestratorStub(channel)


def test_many_at_once_get_the_answers_of_generate(
    server: Server, command: Any, tmp_path: Path
) -> None:
    asked = [f"Question {n} " + "word " * (5 * n) for n in range(9)]
    file, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in asked))
    flags = (MODEL, "--file", file, "--out", out, f"--max_new_tokens={LIMIT}")
    assert command("generate", *flags).returncode == 0
    expected = [json.loads(line)["responses"][0] for line in out.read_text().splitlines()]

    async def run() -> None:
        async for stub in connected(server):
            assert (await stub.HealthCheck(messages.HealthCheckRequest())).is_live
            answers = await asyncio.gather(*(answer(stub, text(one)) for one in asked))
            assert [said for said, _ in answers] == expected
            again = await asyncio.gather(*(answer(stub, text(one)) for one in asked[::-1]))
            assert again == answers[::-1]

    asyncio.run(run())


def test_a_client_may_bring_its_own_tokens(server: Server) -> None:
    prompts = [[65 + n] * (3 * n + 1) for n in range(8)]

    async def run() -> None:
        async for stub in connected(server):
            together = await asyncio.gather(*(answer(stub, tokens(one)) for one in prompts))
            alone = [await answer(stub, tokens(one)) for one in prompts]
            assert together == alone
            assert all(said == "" and 0 < len(ids) <= LIMIT for said, ids in alone)

    asyncio.run(run())


def test_a_client_that_hangs_up_harms_nobody(server: Server) -> None:
    async def run() -> None:
        async for stub in connected(server):
            expected = await answer(stub, text("Hello"))
            calls = [stub.Decode(text(f"Go on {n}", 200)) for n in range(6)]
            await calls[0].read()
            staying = [asyncio.create_task(answer(stub, text("Hello"))) for _ in range(4)]
            for call in calls:
                call.cancel()
            assert await asyncio.gather(*staying) == [expected] * 4

    asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (messages.DecodeRequest(max_tokens=3), "neither text_content nor token_content"),
        (text("Hello", 0), "max_tokens=0 must be 1 or more"),
        (text("Hello", 510), "512 are for it and its answer of 510"),
        (text("x" * 600), "512 are for it"),
        (tokens([]), "the prompt is empty"),
        (tokens([5, 99999]), "a token is not in the vocabulary of 512"),
    ],
)
def test_mistakes_are_named(server: Server, request_: Any, says: str) -> None:
    async def run() -> None:
        async for stub in connected(server):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await answer(stub, request_)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert says in refused.value.details()
            assert (await answer(stub, text("Hello")))[0]

    asyncio.run(run())


def test_it_ends_in_order() -> None:
    with serving(MODEL, "--protocol=jetstream", "--slots=2", "--context=256") as running:

        async def run() -> None:
            async for stub in connected(running):
                assert (await answer(stub, text("Hello", 5)))[1]

        asyncio.run(run())
        assert running.end() == (0, "")
