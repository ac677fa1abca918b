"""RoPE settings: one rule of precedence, all forms, and a refusal for what means nothing."""

from typing import Any

import pytest

from gad_jax.base.errors import UserError
from gad_jax.models import families
from gad_jax.models.config import Linear, Llama3, LongRope, Rope, Yarn
from tests.models.networks import NETWORKS

_ROPE = ("rope_scaling", "rope_theta")
PLAIN = {k: v for k, v in NETWORKS["llama-linear"].items() if k not in _ROPE}
YARN = {"rope_type": "yarn", "factor": 4.0}


def rope(**fields: Any) -> Rope | None:
    return families.read(PLAIN | fields).kinds[0].rope


def test_rope_scaling_replaces_the_whole_of_rope_parameters() -> None:
    # as transformers does: the theta inside of rope_parameters goes with it
    newer = {"rope_type": "default", "rope_theta": 1e6}
    linear = {"type": "linear", "factor": 4.0}
    assert rope(rope_parameters=newer) == Rope(1e6)
    assert rope(rope_parameters=newer, rope_scaling=linear) == Rope(1e4, Linear(4.0))
    both = rope(rope_parameters=newer, rope_scaling=linear, rope_theta=5e5)
    assert both == Rope(5e5, Linear(4.0))


def test_defaults_of_the_scalings() -> None:
    yarn = rope(rope_scaling=YARN)
    assert yarn == Rope(1e4, Yarn(4.0, 2048, 0.1 * 1.3862943611198906 + 1, 32.0, 1.0, True))
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert rope(rope_scaling=llama3) == Rope(1e4, Llama3(8.0, 1.0, 4.0, 2048))
    deepseek = YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}
    assert rope(rope_scaling=deepseek).scaling.attention_factor == 1.0  # type: ignore[union-attr]
    # as transformers 5 reads a null, and with what YaRN's authors add
    null = rope(rope_scaling=YARN | {"factor": None, "original_max_position_embeddings": 512})
    assert null is not None
    assert isinstance(null.scaling, Yarn)
    assert null.scaling.factor == 4.0
    assert rope(rope_scaling=YARN | {"finetuned": True}) == yarn


def test_longrope_bounds_the_sequence() -> None:
    config = families.read(NETWORKS["phi4-mini"])
    scaling = config.kinds[0].rope and config.kinds[0].rope.scaling
    assert isinstance(scaling, LongRope)
    assert (config.max_positions, scaling.extended_positions) == (1024, 2048)
    assert config.kinds[0].rope == Rope(1e4, scaling, 6)
    assert scaling.attention_factor == pytest.approx((1 + 0.1) ** 0.5)  # ln 2 / ln 1024 = 0.1


REFUSED = [
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ({"rope_scaling": "linear"}, "rope_scaling='linear' must be a JSON object"),
    ({"rope_scaling": {"type": "linear", "factor": 0.0}}, "factor=0.0 must be a finite number"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 4}}, "beta_fast=4"),
    ({"rope_scaling": YARN | {"mrope_section": [1, 2]}}, "mrope_section=[1, 2]"),
    ({"rope_theta": float("nan")}, "rope_theta=nan"),
    ({"rope_theta": -1.0}, "rope_theta=-1.0"),
    ({"rope_theta": 1.0}, "rope_theta=1 must be greater than 1"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ({"original_max_position_embeddings": 512}, "original_max_position_embeddings"),
    (
        {
            "rope_scaling": YARN | {"original_max_position_embeddings": 64},
            "original_max_position_embeddings": 32,
        },
        "is 32 at the top and 64 in the RoPE settings",
    ),
    (
        {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 7.0}}},
        "gives each kind of layer positions of its own",
    ),
    # transformers 4 and 5 take theta 10,000 here: a family of one set reads nothing nested
    (
        {
            "rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}},
            "layer_types": ["full_attention"] * 2,
        },
        "which transformers does not read for family 'llama'",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_would_be_ignored_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        rope(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["short_factor", "long_factor"])
def test_a_missing_factor_is_named(name: str) -> None:
    hf = NETWORKS["phi4-mini"]
    scaling = {k: v for k, v in hf["rope_scaling"].items() if k != name}
    with pytest.raises(KeyError, match=name):
        families.read(hf | {"rope_scaling": scaling})
    with pytest.raises(UserError, match=f"{name} must be a list of 3 numbers"):
        families.read(hf | {"rope_scaling": scaling | {name: [1.0, 2.0]}})


def by_kind(name: str, **fields: Any) -> dict[str, Any]:
    hf = {k: v for k, v in NETWORKS[name].items() if k not in ("rope_scaling", "rope_theta")}
    return hf | fields


OF_KINDS = [
    # transformers 5 leaves such layers unscaled, transformers 4 refuses the config
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "has no 'rope_type'"),
    ({"rope_scaling": YARN | {"truncate": False}}, "truncate=False is not read"),
    # transformers 5 takes max_position_embeddings instead
    ({"rope_scaling": YARN, "original_max_position_embeddings": 16}, "original_max_position"),
]


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
@pytest.mark.parametrize(("fields", "message"), OF_KINDS)
def test_families_with_positions_by_kind_read_less(
    name: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        families.read(by_kind(name, **fields))
    assert message in str(error.value)


def test_thetas_of_positions_by_kind() -> None:
    nested = {"full_attention": {"rope_type": "default"}}
    gemma = families.read(by_kind("gemma3", rope_parameters=nested, rope_theta=6e4))
    assert [kind.rope for kind in gemma.kinds] == [Rope(100.0), Rope(6e4)]
    with pytest.raises(UserError, match=r"reads rope_theta=60000.0 for all layers"):
        families.read(by_kind("olmo3", rope_parameters=nested, rope_theta=6e4))
    nested["full_attention"]["rope_theta"] = 7e4  # type: ignore[assignment]
    olmo = families.read(by_kind("olmo3", rope_parameters=nested, rope_theta=6e4))
    assert [kind.rope for kind in olmo.kinds] == [Rope(5e5), Rope(7e4)]


def test_phi3_has_original_positions_of_its_own() -> None:
    # transformers takes 4096 where the top names none, whatever the settings say
    hf = {k: v for k, v in NETWORKS["phi4-mini"].items() if k[:8] != "original"}
    config = families.read(hf | {"max_position_embeddings": 131072})
    scaling = config.kinds[0].rope and config.kinds[0].rope.scaling
    assert isinstance(scaling, LongRope)
    assert scaling.original_max_positions == 4096
    inside = hf["rope_scaling"] | {"original_max_position_embeddings": 64}
    with pytest.raises(UserError, match="is 4096 at the top and 64 in the RoPE settings"):
        families.read(hf | {"rope_scaling": inside})
    with pytest.raises(UserError, match="rope_type='linear' is not supported"):
        families.read(hf | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    odd = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0]}
    with pytest.raises(UserError, match="rotates 5 numbers of a head"):
        families.read(hf | {"rope_scaling": odd, "partial_rotary_factor": 0.625})
