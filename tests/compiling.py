"""How tests compile: quickly, as tiny networks take far longer to compile than to run."""

import gc
from importlib import metadata

XLA_FLAGS = "--xla_backend_optimization_level=0"
# Splitting a program for 32 threads takes longer than compiling it in one, and many memory maps.
XLA_FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):  # jaxlib 0.12 aborts on a flag that it dropped
    # One MLIR context per fusion: with these emitters a GAD step takes twice as long to compile.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"


def collect_garbage_seldom() -> None:
    """Lets Python look for cycles less often: tracing makes many objects and hardly any garbage,
    and looking for it took a tenth of a run's CPU time."""
    gc.set_threshold(100_000, 20, 100)
