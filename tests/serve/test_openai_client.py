"""OpenAI's own client against our server. CI runs this where that client is installed."""

import asyncio

import pytest

openai = pytest.importorskip("openai")

from tests.serve.servers import serving  # noqa: E402


def test_many_ask_and_one_hangs_up() -> None:
    asked = {"model": "student", "max_tokens": 30, "temperature": 0}

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    async def run(address: str) -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == ["student"]
            create = client.chat.completions.create

            async def whole(n: int) -> str:
                answer = await create(messages=said(f"Question {n}"), **asked)
                assert answer.usage.total_tokens > answer.usage.prompt_tokens
                return answer.choices[0].message.content

            async def streamed(n: int) -> str:
                stream = await create(messages=said(f"Question {n}"), stream=True, **asked)
                return "".join(
                    [part.choices[0].delta.content or "" async for part in stream if part.choices]
                )

            async def hang_up() -> None:
                many = asked | {"max_tokens": 400, "n": 20}
                stream = await create(messages=said("Go on"), stream=True, **many)
                async for _ in stream:
                    break
                await stream.close()

            jobs = [*map(whole, range(8)), *map(streamed, range(8)), hang_up()]
            answers = (await asyncio.gather(*jobs))[:-1]
            assert answers[:8] == answers[8:]
            assert len(set(answers)) > 1
            plain = await client.completions.create(
                model="student", prompt=["Go", "on"], n=2, seed=1, logprobs=0, max_tokens=20
            )
            assert [one.index for one in plain.choices] == [0, 1, 2, 3]
            assert plain.usage.prompt_tokens == 4
            assert len(plain.choices[0].logprobs.tokens) <= 20
            stream = await client.completions.create(
                model="student", prompt="Go", seed=1, max_tokens=20, stream=True
            )
            text = "".join([part.choices[0].text async for part in stream])
            assert text == plain.choices[0].text
            assert (await client.models.retrieve("student")).id == "student"
            with pytest.raises(openai.NotFoundError, match="is not served here"):
                await client.models.retrieve("other")
            with pytest.raises(openai.BadRequestError, match="suffix is not supported"):
                await client.completions.create(model="student", prompt="Go", suffix="x")
            with pytest.raises(openai.BadRequestError, match="top_p"):
                await create(messages=said("Hello"), top_p=2, **asked)
            with pytest.raises(openai.NotFoundError, match="is not served here"):
                await create(messages=said("Hello"), **(asked | {"model": "other"}))

    with serving("--model=random-tiny", "--name=student", "--slots=4") as server:
        asyncio.run(run(server.address))
        assert server.end() == (0, "")
