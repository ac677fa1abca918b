"""Which meshes a network can be split over."""

from jax.sharding import Mesh

from gad_jax.base.errors import UserError
from gad_jax.models.config import DecoderConfig


def check(config: DecoderConfig, mesh: Mesh) -> None:
    """Raises UserError if the mesh's tensor or FSDP axis does not divide what it splits."""
    tensor = {"key/value heads": config.kv_heads, "heads": config.heads}
    if config.experts:
        tensor["experts"] = config.experts.count
    else:
        tensor["mlp features"] = config.mlp_width
    tensor["tokens of the vocabulary"] = config.vocabulary
    for axis, split in (("tensor", tensor), ("fsdp", {"features": config.width})):
        size = mesh.shape[axis]
        for what, count in split.items():
            if count % size:
                raise UserError(
                    f"{axis}={size} of the mesh does not divide the {count} {what} of the "
                    f"{config.family} network; set --mesh.{axis} to a divisor"
                )
