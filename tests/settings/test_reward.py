"""The terms of the reward as they are written: names, weights, and what is refused."""

import math

import pytest

from gad_jax.base.errors import UserError
from gad_jax.settings import options
from gad_jax.settings.config import Config
from gad_jax.settings.reward import Reward, Term


def read(*flags: str) -> Config:
    return options.read(Config, flags, program="test", description="")


def refusal(*flags: str) -> str:
    with pytest.raises(UserError) as refused:
        read(*flags)
    return str(refused.value)


def test_terms_have_names_and_weights() -> None:
    given = "--reward.extra= my/own.py:brevity=0.5, length,finished=-2 , pack.mod:brevity=1e-1"
    config = read(given, "--reward.discriminator=0.8")
    assert config.reward.terms == (
        Term("own.brevity", "function", "my/own.py:brevity", 0.5),
        Term("length", "rule", "length", 1.0),
        Term("finished", "rule", "finished", -2.0),
        Term("pack.mod.brevity", "function", "pack.mod:brevity", 0.1),
    )
    assert Reward(extra=("a=b/c.py:length=2",)).terms[0] == (
        *("length", "function", "a=b/c.py:length", 2.0),
    )
    one = Reward(extra=("lr=3/c.py:length=1",))  # its text is read again, also by a resumed run
    assert one.terms == Reward(extra=one.extra).terms
    assert one.terms[0] == Term("length", "function", "lr=3/c.py:length", 1.0)
    alike = ("a/r.py:f", "b/c/r.py:f", "d/c/r.py:f", "r.py:f", "length")
    names = [term.name for term in Reward(extra=alike).terms]
    assert names == ["a.r.f", "b.c.r.f", "d.c.r.f", "r.f", "length"]
    both = Reward(extra=("length", "own.py:length", "own.py:mean")).terms
    assert [term.name for term in both] == ["length", "own.length", "own.mean"]


def test_the_same_terms_are_the_same_settings_however_they_are_written(tmp_path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("reward:\n  extra: [length=1.0, my.py:f=.50]\n  clip: .inf\n")
    flags = read("--reward.extra=length , my.py:f=0.5")
    assert options.differences(options.load(Config, file), flags) == []
    file.write_text(options.to_yaml(flags))
    assert options.load(Config, file) == flags
    assert flags.reward.extra == ("length", "my.py:f=0.5")
    assert math.isinf(flags.reward.clip)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["extra=lenght"], "extra: 'lenght' is no term; did you mean 'length'?"),
        (["extra=my.py"], "extra: my.py names no function; write my.py:FUNCTION"),
        (["extra=my.py:2f"], "'my.py:2f' is no term; write length, format, finished, judge, model"),
        (["extra=a-b:f"], "'a-b:f' is no term"),
        (["extra=length,"], "extra: '' is no term"),
        (["extra=length=much"], "extra: 'much' is no weight of length; write a number, as in leng"),
        (["extra=length=nan"], "extra: 'nan' is no weight of length"),
        (["extra=d=x/my.py:f"], "extra: 'x/my.py:f' is no weight of d; write a number"),
        (["extra=length=1,length=2"], "extra names length twice; name it once"),
        (["extra=r.py:f,r:f"], "two terms called r.f in the metrics; rename"),
        (["extra=length=0", "discriminator=0"], "no term of extra has a weight: nothing would be"),
        (["discriminator=0"], "discriminator=0 leaves no reward; name another one, as in --rew"),
        (["discriminator=0.5"], "discriminator=0.5 changes nothing without extra terms; name so"),
        (["normalise=batch"], "normalise=batch changes nothing without extra terms"),
        (["timeout=1"], "timeout=1.0 changes nothing without extra terms"),
        (["discriminator=-1", "extra=length"], "discriminator=-1.0 must be 0 or more"),
        (["extra=length", "clip=0"], "clip=0.0 must be greater than 0"),
        (["extra=length", "format=x"], "format is for the term format, which --reward.extra does"),
        (["extra=format"], "extra names format, and there is none; give a regular expression"),
        (["extra=format", "format=("], "format='(' is no regular expression (missing ), unterm"),
        (["extra=finished", "max_length_ratio=2"], "max_length_ratio is for the term length"),
        (["extra=judge"], "extra names judge, and there is none; name a model with --reward.judge"),
        (["extra=model:"], "'model:' is no term"),
        (["extra=length", "judge.model=m"], "judge.model=m is for the term judge, which --reward"),
        (["extra=length", "judge.temperature=0.5"], "judge.temperature=0.5 is for the term judge"),
        (["judge.model=m"], "judge.model=m changes nothing without extra terms; name some with"),
        (["judge.attempts=2"], "judge.attempts=2 changes nothing without extra terms"),
        (["extra=judge", "judge.model=m", "judge.max_cost=1"], "max_cost needs prices; give pro"),
        (["extra=judge", "judge.model=m", "judge.parameters=3"], "parameters must be a JSON obj"),
        (["extra=length", "min_length_ratio=2"], "min_length_ratio=2.0 must be less than the max"),
    ],
)
def test_what_is_not_understood_or_has_no_effect_is_refused(flags, said) -> None:
    message = refusal(*(f"--reward.{flag}" for flag in flags))
    assert said in message
    assert message.startswith("--reward.")


def test_models_and_a_judge_have_names_too() -> None:
    flags = ["--reward.extra=model:a/one,model:runs/two@best=2,judge", "--reward.judge.model=m"]
    reward = read(*flags).reward
    assert [term.name for term in reward.terms] == ["model.one", "model.two@best", "judge"]
    exports = Reward(extra=("model:runs/a/export/discriminator", "model:/b/export/discriminator"))
    assert [term.name for term in exports.terms] == [
        *("model.a.export.discriminator", "model.b.export.discriminator"),
    ]
    assert Reward(extra=("model:a=b=0.5",)).terms[0] == Term("model", "model", "model:a=b", 0.5)
    # A rehearsal asks no judge, and its tiny student fits no model.
    assert reward.rehearsed() == Reward(extra=("finished",))
    mixed = read(flags[0] + ",finished=0,my.py:f=0.5", flags[1]).reward
    assert mixed.rehearsed() == Reward(extra=("finished=0.0", "my.py:f=0.5"))
    assert mixed.rehearsed().rehearsed() is not mixed
    alone = Reward(extra=("length",))
    assert alone.rehearsed() is alone


def test_steps_of_a_discriminator_that_is_not_used_are_refused() -> None:
    flags = ("--reward.discriminator=0", "--reward.extra=length")
    said = refusal(*flags, "--gad.discriminator_only_steps=3")
    assert "trains a discriminator alone, and reward.discriminator=0 uses none" in said
    config = read(*flags, "--warmup.train_discriminator=false")
    assert [config.trains_discriminator(name) for name in ("warmup", "gad")] == [False, False]
    assert [config.uses_discriminator(name) for name in ("seqkd", "gad")] == [False, False]
    said = refusal(*flags)
    assert said.startswith("--reward.discriminator=0: warmup trains a discriminator that no later")
    assert said.endswith("give --warmup.train_discriminator=false, or leave warmup out of --stage")
    said = refusal(*flags, "--stage=warmup,offpolicy,gad")
    assert said.endswith("has reward.discriminator=0; leave offpolicy out of --stage")
    for option in ("label_smoothing=0.1", "heads=2", "replay_share=0.5"):
        said = refusal(*flags, "--stage=gad", f"--discriminator.{option}")
        assert "no stage of stage=gad trains a discriminator; leave it out" in said
    given = ("--discriminator.heads=2", "--discriminator.pessimism=1")
    said = refusal(*flags, *given, "--stage=gad,warmup")
    assert "pessimism=1, and no stage of stage=gad,warmup pays rewards of the discr" in said
    for stages in ("warmup,rejection,gad", "warmup,gad,rejection", "gad,offpolicy", "warmup"):
        assert read(*flags, f"--stage={stages}").reward.discriminator == 0
