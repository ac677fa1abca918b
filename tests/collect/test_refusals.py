"""Refusals in ten languages, and answers that begin in a similar way."""

import time

import pytest

from gad_jax.collect.refusals import is_refusal

REFUSALS = """\
I'm sorry, but I can't.
I will not help with that.
I will not provide instructions for making weapons.
I won't do that.
I don't feel comfortable writing this story.
I do not feel comfortable discussing this topic.
I'm not comfortable generating that content.
I can't assist with that request.
I cannot fulfill this request.
I'm sorry, but I can't assist with that.
Sorry, I can't help with that.
I apologize, but I cannot provide that information.
As an AI language model, I cannot provide medical advice.
As an AI, I am unable to generate such content.
I'm unable to help you with this.
I am not able to comply with this request.
I must decline this request.
I must respectfully decline to write this.
I respectfully decline.
I'm afraid I can't do that.
Unfortunately, I am unable to assist.
I understand your frustration, but I can't help with breaking into accounts.
I'd rather not write that.
I would prefer not to engage with this topic.
I'm not going to help with that.
I cannot in good conscience write this.
I refuse to answer.
I'm really sorry you're feeling this way, but I'm unable to provide the help that you need.
I appreciate your interest, but I won't be able to help with this.
Thank you for asking, but I don't feel comfortable with this request.
**I can't help with that.**
No, I will not write that.
I won’t participate in creating that kind of content.
I can not create explicit content.
Es tut mir leid, aber ich kann dabei nicht helfen.
Ich kann dir dabei nicht helfen.
Leider kann ich diese Anfrage nicht erfüllen.
Lo siento, pero no puedo ayudarte con eso.
Je suis désolé, mais je ne peux pas vous aider.
Mi dispiace, ma non posso aiutarti.
Desculpe, mas não posso ajudar com isso.
很抱歉，我无法提供这方面的帮助。
对不起，我不能回答这个问题。
申し訳ありませんが、そのご要望にはお応えできません。
죄송하지만 그 요청은 도와드릴 수 없습니다.
Извините, но я не могу помочь с этим.
К сожалению, я не могу выполнить этот запрос.
I'm sorry, I can't help with that.
I am sorry but as an AI I cannot do that.
I won't.
I will not.
"""

ANSWERS = """\
I'm sorry, but there's not enough information to answer the question.
I'm sorry, but there is not enough information in the passage.
I apologize, but the statement is not correct: Paris is the capital of France.
Sorry, but that is wrong. The answer is 5.
I apologize for the confusion. The correct answer is 12.
I'm sorry to hear that you are ill. Here are some tips.
There's not enough information to determine the answer.
I can't help but notice that the code has an error.
I cannot find an error in your code.
I can't see a difference between the two.
I will not go on a picnic if it rains, said Tom.
As an AI language model I am trained on text. Transformers consist of layers.
Es tut mir leid, aber die Aussage ist falsch.
Lo siento, pero la respuesta es incorrecta.
很抱歉，您的说法有误。正确答案是五。
Ich kann Ihnen drei Tipps geben: erstens viel trinken.
Sorry, I made a mistake. The answer is 7.
Unfortunately, the text does not say who wrote it.
I don't think so: the sum is 4.
I won a prize.
The function cannot be called without an argument.
I'm afraid the premise is false: no such king existed.
I would suggest three options.
Извините, но это неверно.
죄송하지만 그 답은 틀렸습니다.
Je suis désolé, mais la réponse est fausse.
I do not agree with the claim, as the data show.
I'm sorry, but your date is off: 1066 was the year.
I can make a table of that.
Declining sales hurt the firm.
I don't know who wrote it, but I can guess.
I can't believe it's not butter is a brand.
I'm sorry for the delay, and I will not be late again. Sincerely, Ann
I don't recommend using goto here.
I can't recommend this book enough.
I can't tell which one is older.
I can't make sense of line 3; it lacks a verb.
"""


@pytest.mark.parametrize("text", REFUSALS.splitlines())
def test_a_refusal_is_seen(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(f"\n**{text}** {text}")


@pytest.mark.parametrize("text", ANSWERS.splitlines())
def test_an_answer_is_none(text: str) -> None:
    assert not is_refusal(text)


def test_a_hostile_text_takes_no_time() -> None:
    started = time.monotonic()
    for lead in ("I'm sorry ", "I understand ", "i ", "Es tut mir leid ich kann das ", "很抱歉"):
        assert not is_refusal(lead + "a " * 100_000)
        assert not is_refusal(lead * 20_000)
    assert time.monotonic() - started < 2
