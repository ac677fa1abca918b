"""Other engines that `bench rollout` times on the same prompts, if their packages are installed."""

import importlib
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gad_jax.base.errors import UserError


class Seconds(NamedTuple):
    """Seconds of the prompts, and of the tokens that follow them."""

    prefill: float
    decode: float


class Peer(NamedTuple):
    """An engine; `run(prompts [B P], tokens)` appends so many greedy tokens to each prompt."""

    name: str
    run: Callable[[np.ndarray, int], Seconds]
    keep: Any = None
    """An object that the engine's C library points to, and that must not be freed."""


def torch_device() -> tuple[str, str]:
    """Returns the device and the dtype for torch that match those of JAX in this process."""
    return ("cuda", "bfloat16") if jax.default_backend() == "gpu" else ("cpu", "float32")


def transformers(directory: Path) -> Peer | None:
    """Returns transformers' `generate`, on the device and in the dtype of `torch_device`; None if
    torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM

    device, dtype = torch_device()
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, use_safetensors=True)
    model = model.to(device).eval()

    def run(prompts: np.ndarray, tokens: int) -> Seconds:
        ids = torch.from_numpy(prompts).long().to(device)

        def draw(count: int) -> float:
            started = time.perf_counter()
            with torch.no_grad():
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                )
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

        prefill = draw(1)
        return Seconds(prefill, draw(tokens) - prefill)

    return Peer(f"transformers, {dtype}", run)


def llama_cpp(file: str) -> Peer | None:
    """Returns llama.cpp's batched decode of a GGUF file; None if no file is given.

    Raises UserError when the file or the package llama-cpp-python is missing.
    """
    if not file:
        return None
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError(f"gguf={file}: llama-cpp-python is not installed; install it, or leave out")
    llama: Any = importlib.import_module("llama_cpp")
    if not Path(file).is_file():
        raise UserError(f"gguf={file} is not a file; name a GGUF file of the same model")
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    if not model:
        raise UserError(f"gguf={file}: llama.cpp cannot load it; name a GGUF file of the model")

    def run(prompts: np.ndarray, tokens: int) -> Seconds:
        size, width = prompts.shape
        settings = llama.llama_context_default_params()
        settings.n_ctx = size * (width + tokens)
        settings.n_batch = settings.n_ubatch = size * width
        settings.n_seq_max = size
        settings.n_threads = settings.n_threads_batch = len(os.sched_getaffinity(0))
        context = llama.llama_init_from_model(model, settings)
        batch = llama.llama_batch_init(size * width, 0, 1)
        greedy = llama.llama_sampler_init_greedy()
        try:
            started = time.perf_counter()
            _decode(llama, context, batch, prompts, 0)
            last = [(row + 1) * width - 1 for row in range(size)]
            drawn = [llama.llama_sampler_sample(greedy, context, at) for at in last]
            prefill = time.perf_counter() - started
            for step in range(1, tokens):
                _decode(llama, context, batch, np.array(drawn)[:, None], width + step - 1)
                drawn = [llama.llama_sampler_sample(greedy, context, at) for at in range(size)]
            return Seconds(prefill, time.perf_counter() - started - prefill)
        finally:
            llama.llama_sampler_free(greedy)
            llama.llama_batch_free(batch)
            llama.llama_free(context)

    return Peer(f"llama.cpp, {Path(file).name}", run, keep=silent)


def _decode(llama: Any, context: Any, batch: Any, tokens: np.ndarray, start: int) -> None:
    """Runs `tokens [B T]` of B sequences from position `start`; keeps the last logits of each."""
    size, width = tokens.shape
    batch.n_tokens = size * width
    for at, token in enumerate(tokens.ravel().tolist()):
        row, column = divmod(at, width)
        batch.token[at] = token
        batch.pos[at] = start + column
        batch.n_seq_id[at] = 1
        batch.seq_id[at][0] = row
        batch.logits[at] = column == width - 1
    code = llama.llama_decode(context, batch)
    if code:
        raise RuntimeError(f"llama_decode returned {code}")
