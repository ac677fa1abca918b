"""Which requests differ, and in which order they are sent."""

import dataclasses

from gad_jax.data.sources.rows import Row
from gad_jax.teacher.questions import Teacher, from_rows, most_prompt_tokens, request_key

TEACHER = Teacher("m", "", {"temperature": 1.0})
USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}


def row(*messages: dict[str, str], id: str = "1") -> Row:
    return Row(messages, (), id)


def test_equal_conversations_are_one_question() -> None:
    rows = [row(USER, id="1"), row(USER, id="2"), row({"role": "user", "content": "Bye"})]
    found = from_rows(rows, TEACHER, 2)
    assert [(one.row, one.sample) for one in found] == [("1", 0), ("1", 0), ("1", 1), ("1", 1)]
    assert len({(one.key, one.sample) for one in found}) == 4
    assert len({one.idempotency_key for one in found}) == 4


def test_the_teachers_system_prompt_leads_where_there_is_none() -> None:
    teacher = dataclasses.replace(TEACHER, system="Be kind.")
    first, second = from_rows([row(USER), row(SYSTEM, USER)], teacher, 1)
    assert first.sent == ({"role": "system", "content": "Be kind."}, USER)
    assert first.messages == (USER,)
    assert second.sent == second.messages == (SYSTEM, USER)


def test_the_key_depends_on_all_that_is_sent() -> None:
    others = (
        dataclasses.replace(TEACHER, model="other"),
        dataclasses.replace(TEACHER, parameters={"temperature": 0.5}),
    )
    keys = {request_key(teacher, (USER,)) for teacher in (TEACHER, *others)}
    assert len(keys | {request_key(TEACHER, (SYSTEM, USER))}) == 4
    assert request_key(TEACHER, (USER,)) == request_key(
        Teacher("m", "ignored here", {"temperature": 1.0}), (USER,)
    )


def test_the_token_bound_counts_bytes() -> None:
    assert most_prompt_tokens([{"content": "äö"}, {"content": ""}]) == 4 + 2 * 16
