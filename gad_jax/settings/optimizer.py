"""The optimizer of both networks. Imports no jax."""

from dataclasses import dataclass
from typing import Literal

from gad_jax.settings.fields import Checked, option


@dataclass(frozen=True)
class Optimizer(Checked):
    """AdamW after a global-norm clip; learning rates are those of each stage."""

    beta1: float = option(0.9, "decay of the first moment", minimum=0, below=1)
    beta2: float = option(0.999, "decay of the second moment", minimum=0, below=1)
    epsilon: float = option(1e-8, "added to the root of the second moment", above=0)
    moments: Literal["float32", "bfloat16", "float8"] = option(
        "float32",
        "how both moments are stored; bfloat16 saves 4 bytes a trained parameter, float8 6",
    )
    placement: Literal["device", "host"] = option(
        "device",
        "where both moments are; host: in pinned memory of the host, on the device a layer at a "
        "time",
    )
    weight_decay: float = option(0.01, "decoupled weight decay", minimum=0)
    max_gradient_norm: float = option(
        0.2,
        "a gradient of a larger global norm is scaled down to it; inf: never",
        above=0,
        infinite=True,
    )
    max_skips: int = option(
        10, "stop after this many consecutive steps with non-finite numbers", "steps", above=0
    )
