"""What a run learns: sections of its settings, frozen dataclasses that check themselves when made.

Defaults are the paper's (arXiv:2511.10643) or, where the paper is silent, those of its released
scripts. The sections on how a run is operated are in `operation.py` and `alarms.py`.
"""

import re
from dataclasses import dataclass
from typing import Literal

from gad_jax.settings import template_arguments
from gad_jax.settings.decoding import LEAST_TEMPERATURE
from gad_jax.settings.fields import Checked, FieldError, option

LONGEST_PROMPT = 2048
LONGEST_RESPONSE = 1536
"""The paper's limits, in tokens."""

# What was meant as a share or a number of prompts, right or wrong.
_AMOUNT = re.compile(r"\s*[-+]?[\d.,_]*\d[\d.,_]*(e[-+]?\d+)?\s*(%|percent|pct)*\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Student(Checked):
    """The model that learns, and how both networks are computed."""

    path: str = option(
        "smollm2-135m-instruct",
        "local Hugging Face directory, hub id (org/name), smollm2-135m-instruct, random-tiny, or "
        "another run's student: RUN, RUN@best or RUN@STEP",
        common=True,
        filled=True,
    )
    compute_dtype: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "dtype of activations and matmuls; auto: bfloat16, on a CPU float32"
    )
    matmul: Literal["auto", "bfloat16", "float8"] = option(
        "auto",
        "operands of the layers' matmuls in updates; auto: in compute_dtype, bfloat16: rounded "
        "(CPUs with AMX or AVX512-BF16), float8: rounded to 8 bits (GPUs of compute capability 8.9 "
        "or later; a CPU computes the same, slowly)",
    )
    remat: Literal["full", "dots", "none"] = option(
        "full",
        "what the backward pass recomputes in a layer: all, all but matmuls, nothing",
        common=True,
    )
    unroll: bool = option(
        False, "on a GPU, updates list all layers and do not loop: fewer kernels, a longer compile"
    )


_PROMPT = (
    "column of the prompt, or a path such as body.messages; empty: found by the columns' names"
)
_RESPONSE = "column of the teacher's answer, or a path such as response.body.text; empty: as above"


@dataclass(frozen=True)
class Columns(Checked):
    """Where the rows of a file have prompt and answer; for commands that only read prompts."""

    prompt: str = option("", _PROMPT)
    response: str = option("", _RESPONSE)


@dataclass(frozen=True)
class Data(Checked):
    """Teacher text and how it becomes prompts."""

    train: str = option(
        "bundled",
        "teacher rows: JSON, CSV or Parquet files, a directory or pattern of them, or a hub "
        "dataset (ORG/NAME), each with :SPLIT if it is not train; a.jsonl=0.7,b.jsonl=0.3 mixes "
        "two, by shares of the prompts",
        common=True,
        filled=True,
        location=True,
    )
    heldout: str = option(
        "bundled:heldout",
        "rows for evaluation; 5% or 200: so many of the training prompts, which are then not "
        "trained on; empty: none",
        common=True,
        location=True,
    )
    heldout_seed: int = option(
        0, "seed that chooses the prompts of --data.heldout=5% or 200", minimum=0
    )
    prompt: str = option("", _PROMPT, common=True)
    response: str = option("", _RESPONSE, common=True)
    rejected: str = option(
        "", "column of the rejected answers, for --dpo.rejected=column; empty: rejected"
    )
    template: Literal["alpaca", "none"] = option(
        "alpaca", "wrapper of the instruction inside the user turn (the paper uses alpaca)"
    )
    chat_template_kwargs: str = option("", template_arguments.HELP, common=True)
    thoughts: Literal["drop", "keep"] = option(
        "drop",
        "the teacher's thoughts (<think> …): train on the answers alone, or on both",
        common=True,
    )
    max_prompt_tokens: int = option(
        LONGEST_PROMPT,
        f"longer prompts are dropped; 0: the longest prompt of the rows, at most {LONGEST_PROMPT}",
        "tokens",
        common=True,
        minimum=0,
    )
    stop_at_dropped_share: float = option(
        0.5,
        "stop if this share of the prompts, or more, is too long; 1: never",
        above=0,
        maximum=1,
    )
    stop_at_cut_share: float = option(
        0.5,
        "stop if this share of the teacher's responses, or more, is cut at "
        "--rollout.max_new_tokens; 1: never",
        above=0,
        maximum=1,
    )
    skip_invalid: bool = option(False, "skip and count malformed rows instead of stopping")
    keep_unfinished: bool = option(
        False, "train on collected responses that were cut or refused, too"
    )
    max_invalid_share: float = option(
        0.01,
        "with skip_invalid, stop if a larger share of the rows is malformed",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.heldout_part  # refuses what is not understood
        # One text for the same arguments: a run resumes however they are written.
        found = template_arguments.show(template_arguments.parse(self.chat_template_kwargs))
        object.__setattr__(self, "chat_template_kwargs", found)

    @property
    def heldout_part(self) -> float | int | None:
        """The part of the training prompts to hold out: a share in (0, 1) or a number.

        None where `heldout` names rows or is empty.
        """
        text = self.heldout
        if not _AMOUNT.fullmatch(text):
            return None
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text):
            share = float(text[:-1]) / 100
            if 0 < share < 1:
                return share
            raise FieldError(
                "heldout", f"heldout={text} must be more than 0% and less than 100% of the prompts"
            )
        if re.fullmatch(r"[0-9]+", text) and int(text):
            return int(text)
        raise FieldError(
            "heldout",
            f"heldout={text!r} is no part of the prompts; write a share as 5%, a number of prompts "
            "as 200, rows as a file name (./ before one that is a number), or nothing for no "
            "evaluation",
        )


@dataclass(frozen=True)
class Batch(Checked):
    """The size of a step and how it is laid out in memory."""

    prompts: int = option(256, "prompts drawn per step", "prompts", common=True, above=0)
    micro_batch_prompts: int = option(
        0,
        "prompts per micro-batch of gradient accumulation; 0: all of them",
        "prompts",
        common=True,
        minimum=0,
    )
    row_tokens: int = option(
        0,
        "length of a packed row, at least the longest prompt and response together; "
        "0: that sum, rounded up to 128",
        "tokens",
        minimum=0,
    )
    vocabulary_chunk: int = option(
        0,
        "positions per data shard whose logits are in memory at a time; 0: 512 on a CPU or where "
        "the head is frozen, else 4096 on a GPU, 2048 on a TPU",
        "tokens",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        micro = self.micro_batch_prompts or self.prompts
        if self.prompts % micro:
            raise FieldError(
                "micro_batch_prompts",
                f"micro_batch_prompts={micro} does not divide prompts={self.prompts}; "
                "use a divisor, so that micro-batches hold whole groups",
                "prompts",
            )


@dataclass(frozen=True)
class Rollout(Checked):
    """How the student samples responses during training."""

    samples: int = option(8, "responses per prompt: the GRPO group", "responses", common=True)
    temperature: float = option(0.8, "sampling temperature", common=True, above=0)
    top_k: int = option(0, "sample from the k most likely tokens; 0: all", "tokens", minimum=0)
    top_p: float = option(
        1.0, "sample from the most likely tokens of this total probability", above=0, maximum=1
    )
    max_new_tokens: int = option(
        LONGEST_RESPONSE,
        "a longer response is cut; 0: what holds 99 % of the teacher's responses",
        "tokens",
        common=True,
        minimum=0,
    )
    slots: int = option(
        0,
        "responses sampled at once on a data shard; 0: 32 on a CPU, else 64",
        "responses",
        common=True,
        minimum=0,
    )
    resize: bool = option(
        True,
        "KV cache and slots follow what is left to sample; false: one size, one program to compile",
    )
    weights: Literal["auto", "bfloat16", "int8"] = option(
        "auto",
        "the copy of the weights that decoding reads; auto: as the matmuls, int8: the layers' "
        "kernels in 8 bits, bfloat16: all kernels so, on a CPU with instructions for it",
    )
    ahead: bool = option(
        False,
        "in the stage gad, sample the responses of a step before the update of the step before; "
        "their rewards are then computed during that update",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise FieldError(
                "samples",
                f"samples={self.samples} must be 2 or more: an advantage compares samples of one "
                "group",
            )
        if self.temperature < LEAST_TEMPERATURE:
            raise FieldError(
                "temperature",
                f"temperature={self.temperature:g} is greedy, and all samples of a group would be "
                f"the same; use {LEAST_TEMPERATURE:g} or more",
            )
        if self.ahead and (self.top_k or self.top_p < 1):
            name = "top_k" if self.top_k else "top_p"
            raise FieldError(
                "ahead",
                "ahead=true trains on samples of the weights before the last update, so training "
                f"could not know which tokens {name}={getattr(self, name):g} left to draw; give "
                "--rollout.ahead=false, or sample from all tokens",
                name,
            )


@dataclass(frozen=True)
class Stage(Checked):
    """One stage of training; it starts with fresh optimizer moments unless it keeps them."""

    epochs: float = option(1.0, "passes over the training rows", "epochs", common=True, above=0)
    steps: int = option(0, "instead of epochs; 0: epochs decide", "steps", common=True, minimum=0)
    generator_learning_rate: float = option(
        1e-6, "learning rate of the generator", common=True, minimum=0
    )
    discriminator_learning_rate: float = option(
        1e-6, "learning rate of the discriminator", common=True, minimum=0
    )
    schedule: Literal["constant", "linear", "cosine"] = option(
        "constant", "both learning rates over the stage's steps; linear, cosine: they fall to 0"
    )
    discriminator_only_steps: int = option(
        0,
        "first steps that train the discriminator alone; none if it is frozen",
        "steps",
        minimum=0,
    )
    train_generator: bool = option(True, "false freezes the generator")
    train_discriminator: bool = option(True, "false freezes the discriminator")
    keep_moments: bool = option(
        False,
        "begin with the optimizer moments of the stage before, as the paper's released scripts do; "
        "false: with fresh ones",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.train_generator or self.train_discriminator):
            raise FieldError(
                "train_generator",
                "train_generator and train_discriminator are both false; nothing would learn",
                "train_discriminator",
            )
