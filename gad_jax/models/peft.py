"""Adapters as directories of the PEFT library: adapter_config.json, adapter_model.safetensors.

What is read is used or refused by name: PEFT has many kinds of adapters, and this is plain LoRA.
"""

import json
import typing
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gad_jax.base.errors import StorageError, UserError
from gad_jax.distributed import devices
from gad_jax.models import families
from gad_jax.models.carried import write_json
from gad_jax.models.config import DecoderConfig
from gad_jax.models.families.common import Part
from gad_jax.models.weights import FLOATS
from gad_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "bias", "init_lora_weights")
# They say how an adapter was trained or is loaded, or repeat what the names of its tensors say.
_HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("lora_dropout", "target_modules", "exclude_modules", "layers_pattern", "peft_version"),
    *("megatron_core", "megatron_config", "qalora_group_size", "runtime_config", "eva_config"),
    *("corda_config", "loftq_config", "lora_ga_config", "velora_config"),
)
# Others change the base too: pissa, olora, corda, loftq.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def read(directory: Path, network: DecoderConfig) -> Params:
    """Returns the adapters of a PEFT directory on the host, as `network` (which has some) needs.

    Raises UserError where it is no plain LoRA, or one of other targets, rank, scale or shapes.
    """
    lora = network.lora
    assert lora is not None
    names = _names(network)
    rank, alpha = _checked(_read_config(directory))
    try:
        tensors = safe_open(directory / WEIGHTS, framework="numpy")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory / WEIGHTS} cannot be read as safetensors ({error}); save the adapter "
            "again in PEFT"
        ) from error
    stored = set(tensors.keys())
    _check_fit(directory, network, stored, (rank, alpha))

    def stack(target: str, side: str) -> np.ndarray:
        name = f"{_PREFIX}{names[target]}.{_SIDES[side]}.weight"
        sizes = _sizes(network, target)
        shape = (rank, sizes[0]) if side == "lora_a" else (sizes[1], rank)
        each = [_tensor(directory, tensors, name.format(i), shape).T for i in range(network.layers)]
        return np.stack(each)

    return {"layers": {t: {side: stack(t, side) for side in _SIDES} for t in lora.targets}}


def _check_fit(
    directory: Path, network: DecoderConfig, stored: set[str], scale: tuple[int, float]
) -> None:
    """Refuses an adapter of other targets, rank or alpha, and one that lacks or adds a tensor."""
    lora, names = network.lora, _names(network)
    assert lora is not None
    found = tuple(
        target
        for target, name in names.items()
        if f"{_PREFIX}{name.format(0)}.lora_A.weight" in stored
    )
    wanted = {"rank": (scale[0], lora.rank), "alpha": (scale[1], lora.alpha)}
    wanted |= {"targets": (",".join(found), ",".join(lora.targets))}
    wrong = [name for name, (there, here) in wanted.items() if there != here]
    if wrong and found:
        flags = " ".join(f"--lora.{name}={_number(wanted[name][0])}" for name in wrong)
        raise UserError(
            f"the adapter in {directory} has other settings than the run's; give {flags}"
        )
    expected = {
        f"{_PREFIX}{names[target].format(layer)}.{side}.weight"
        for target in lora.targets
        for layer in range(network.layers)
        for side in _SIDES.values()
    }
    if others := sorted(stored ^ expected):
        raise UserError(
            f"{directory / WEIGHTS} {'has' if others[0] in stored else 'lacks'} {others[0]}, "
            f"unlike a LoRA of this student ({network.layers} layers, {', '.join(lora.targets)}); "
            "give the --student.path that it was trained on"
        )


def tensors(network: DecoderConfig, trained: Params) -> dict[str, Any]:
    """Returns adapter_model.safetensors of what is trained. All processes call it."""
    names = _names(network)
    found = {}
    for target, part in trained["layers"].items():
        for side, peft_name in _SIDES.items():
            whole = devices.fetch(part[side])
            for layer in range(network.layers):
                name = f"{_PREFIX}{names[target].format(layer)}.{peft_name}.weight"
                found[name] = np.ascontiguousarray(whole[layer].T)
    if network.head == "score":
        kernel = devices.fetch(trained["score"]["kernel"])
        found[f"{_PREFIX}score.weight"] = np.ascontiguousarray(kernel.T)
    return found


def write(directory: Path, network: DecoderConfig, weights: dict[str, Any], base: str) -> None:
    """Writes into a directory what PEFT loads onto the model called `base`; `weights` are of
    `tensors`.

    A discriminator's is for a sequence classifier of one label, whose head has no bias in
    transformers. The bias is the same for all scores, and is left out.
    """
    lora = network.lora
    assert lora is not None
    names = _names(network)
    score = network.head == "score"
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if score else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": _number(lora.alpha),
        "lora_dropout": 0.0,
        "target_modules": [names[target].rpartition(".")[2] for target in lora.targets],
        "modules_to_save": ["score"] if score else None,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_json(directory / CONFIG, config)
    try:
        save_file(weights, directory / WEIGHTS, {"format": "pt"})
    except SafetensorError as error:  # a full disk, for one
        raise StorageError(f"{directory / WEIGHTS} could not be written ({error})") from error


def has_names(network: DecoderConfig) -> bool:
    """Returns whether the family's projections are tensors of their own, as PEFT needs."""
    return not any(isinstance(entry, Part) for entry in families.names(network).values())


def _names(network: DecoderConfig) -> dict[str, str]:
    """Returns the module of each projection, with {} for the layer."""
    if not has_names(network):
        raise UserError(
            f"the family {network.family!r} keeps several projections in one tensor, which has no "
            "PEFT adapter of ours; use the merged weights"
        )
    found = families.names(network)
    kernels = ("query", "key", "value", "output", "gate", "up", "down")
    return {
        name: families.tensor(found[f"layers/{name}/kernel"]).removesuffix(".weight")
        for name in kernels
        if f"layers/{name}/kernel" in found
    }


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return dict(config.items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a JSON object ({error}); --lora.adapter names a directory "
            "that PEFT's save_pretrained wrote"
        ) from error


def _checked(config: dict[str, Any]) -> tuple[int, float]:
    """Returns rank and alpha (for a scale of alpha / rank). Refuses what is no plain LoRA."""
    wrong = [
        name for name, value in config.items() if value and name not in (*_READ, *_HARMLESS)
    ]  # an empty or false field is off
    if config.get("peft_type") != "LORA":
        wrong.insert(0, "peft_type")
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        wrong.append("init_lora_weights")
    if wrong:
        raise UserError(
            f"{CONFIG} has {wrong[0]}={config.get(wrong[0])!r}, and only plain LoRA without "
            "biases can be read; merge the adapter in PEFT (merge_and_unload) and give the "
            "result as --student.path"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (_is_positive(rank) and isinstance(rank, int) and _is_positive(alpha)):
        raise UserError(
            f"{CONFIG} has r={rank!r} and lora_alpha={alpha!r}; both must be positive numbers"
        )
    scale = float(typing.cast(float, alpha))
    return rank, scale * rank**0.5 if config.get("use_rslora") else scale


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < float("inf")


def _sizes(network: DecoderConfig, target: str) -> tuple[int, int]:
    """Returns the input and output width of a projection."""
    heads, kv = network.heads * network.head_width, network.kv_heads * network.head_width
    outputs = {"query": heads, "key": kv, "value": kv, "gate": network.mlp_width}
    outputs["up"] = network.mlp_width
    inputs = {"output": heads, "down": network.mlp_width}
    return inputs.get(target, network.width), outputs.get(target, network.width)


def _tensor(directory: Path, tensors: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = tensors.get_slice(name)
    if found.get_dtype() not in FLOATS or tuple(found.get_shape()) != shape:
        raise UserError(
            f"{directory / WEIGHTS}: the tensor {name} is {found.get_dtype()}"
            f"{list(found.get_shape())}, and the student's has {list(shape)}; give the "
            "--student.path that the adapter was trained on"
        )
    host = tensors.get_tensor(name).astype(np.float32)
    if not np.isfinite(host).all():
        raise UserError(
            f"{directory / WEIGHTS}: the tensor {name} has numbers that are not finite; save the "
            "adapter again"
        )
    return host


def _number(value: Any) -> Any:
    """Returns a whole float as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
