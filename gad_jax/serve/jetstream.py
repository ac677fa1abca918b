"""The student behind JetStream's `engine_api.Engine`, its driver and its gRPC service.

JetStream (google-jetstream 0.2.2) is archived, so three of its faults are patched here:

- It imports a tokenizer library of TensorFlow. Empty classes stand in for what it never calls.
- It deletes arrays by a function that jax no longer has.
- It cannot pad the tokens of a client.

It also ends the whole process if a request raises in one of its threads, so requests are checked
before it sees them.
"""

import asyncio
import importlib
import logging
import signal
import sys
import threading
import types
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gad_jax.base.errors import UserError
from gad_jax.rollout import live
from gad_jax.rollout.live import Live
from gad_jax.rollout.ring import DecodeCopy, PromptCache
from gad_jax.rollout.sampling import GREEDY, RowSamplers
from gad_jax.serve.student import ServedStudent
from gad_jax.serve.text import TextStream

if TYPE_CHECKING:
    from gad_jax.serve.__main__ import Serve

GRACE_SECONDS = 5.0


def _import_jetstream() -> tuple[Any, ...]:
    """Returns JetStream's modules, patched."""
    seqio, vocabularies = types.ModuleType("seqio"), types.ModuleType("seqio.vocabularies")
    base = type("Vocabulary", (), {})
    sentence_piece = type("SentencePieceVocabulary", (base,), {})
    vars(vocabularies).update(Vocabulary=base, SentencePieceVocabulary=sentence_piece)
    vars(seqio).update(vocabularies=vocabularies)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stand_in = "seqio" not in sys.modules
    if stand_in:
        sys.modules |= {"seqio": seqio, "seqio.vocabularies": vocabularies}
    try:
        names = (
            *("core.orchestrator", "core.proto.jetstream_pb2_grpc"),
            *("engine.engine_api", "engine.tokenizer_api", "engine.tokenizer_pb2"),
        )
        found: list[Any] = [importlib.import_module(f"jetstream.{name}") for name in names]
        grpc = importlib.import_module("grpc")
    except ImportError as error:
        raise UserError(
            f"--protocol=jetstream needs google-jetstream ({error}); run "
            "`pip install --no-deps -r requirements-jetstream.txt`"
        ) from error
    finally:
        if stand_in:
            del sys.modules["seqio"], sys.modules["seqio.vocabularies"]
        root.handlers[:] = handlers  # importing it installs a handler that logs everything
        root.setLevel(level)
    found[0].delete_pytree = _delete
    return (*found, grpc)


def _delete(tree: Any) -> None:
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            leaf.delete()


orchestrator, services, engine_api, tokenizer_api, tokenizer_pb2, grpc = _import_jetstream()


class Prefilled(NamedTuple):
    """A prompt that waits for a slot: its KV cache, its length, and its last token."""

    prefix: PromptCache
    length: jax.Array
    last_token: jax.Array


class Tokenizer(tokenizer_api.Tokenizer):
    """The student's chat as JetStream sees it: a text is one user message."""

    def __init__(self, student: ServedStudent) -> None:
        self.student, self.chat = student, student.chat

    pad_id = property(lambda self: self.chat.pad_token)
    eos_id = property(lambda self: self.chat.end_token)
    bos_id = property(lambda self: self.chat.pad_token)  # the chat template writes its own
    stop_tokens = property(lambda self: set(self.chat.end_tokens))

    def encode(self, s: str, **_: Any) -> tuple[np.ndarray, int]:
        """Returns the prompt of a text and its length; `Engine.prefill` pads it."""
        tokens = self.student.encode([{"role": "user", "content": s}])
        return tokens, len(tokens)

    def decode(self, token_ids: list[int], **_: Any) -> str:
        """Returns the text of tokens."""
        return self.chat.decode(token_ids)


class Engine(engine_api.Engine):
    """The programs of `rollout.live`, greedy, as JetStream calls them.

    The KV cache has a capacity of `student.context`: JetStream does not say which slots are in use.
    """

    def __init__(self, student: ServedStudent) -> None:
        self.student = student

    max_concurrent_decodes = property(lambda self: self.student.slots)
    max_prefill_length = property(lambda self: self.student.context - 1)
    samples_per_slot = property(lambda self: 1)
    mesh = property(lambda self: self.student.mesh)
    colocated_cpus = property(lambda self: None)

    def load_params(self, *_: Any, **__: Any) -> DecodeCopy:
        """Returns the decode copy of the weights."""
        return self.student.weights

    def get_prefix_destination_sharding(self) -> Any:
        """Returns where prefill leaves its KV cache: on the same devices."""
        return jax.sharding.NamedSharding(self.student.mesh, jax.P())

    def get_tokenizer(self) -> Any:
        """Returns what JetStream passes to `build_tokenizer`."""
        return tokenizer_pb2.TokenizerParameters(path=self.student.chat.directory, extra_ids=0)

    def build_tokenizer(self, metadata: Any) -> Tokenizer:
        """Returns the student's tokenizer."""
        return Tokenizer(self.student)

    def init_decode_state(self, *_: Any, **__: Any) -> Live:
        """Returns empty slots."""
        with jax.set_mesh(self.student.mesh):
            return live.start(self.student.config, self.student.slots, self.student.context)

    def prefill(
        self, *, params: Any, existing_prefix: Any = None, padded_tokens: Any, true_length: int
    ) -> Prefilled:
        """Runs a prompt `[W]`; the tokens after the first `true_length` are padding."""
        tokens = np.asarray(padded_tokens)[:true_length]
        with jax.set_mesh(self.student.mesh):
            prefix = self.student.prefill(tokens)
        return Prefilled(prefix, jnp.asarray(true_length, jnp.int32), jnp.asarray(tokens[-1]))

    def insert(self, prefix: Prefilled, decode_state: Live, slot: int) -> Live:
        """Returns the state with the prompt in a slot."""
        greedy = RowSamplers.of(GREEDY)
        where = (np.int32(slot), prefix.length, prefix.last_token, np.uint32(0))
        with jax.set_mesh(self.student.mesh):
            return live.insert(decode_state, prefix.prefix, *where, greedy)

    def generate(self, params: DecodeCopy, decode_state: Live) -> tuple[Live, Any]:
        """Draws a token in every slot; one beyond the context is not valid."""
        with jax.set_mesh(self.student.mesh):
            state, tokens, _ = live.step(self.student.config, params, decode_state)
            valid = state.ring.context < self.student.context
            data = jnp.stack([tokens, valid.astype(jnp.int32), state.generated], axis=-1)
        return state, engine_api.ResultTokens(data, (0, 1), (1, 2), (2, 3), 1)


class _Driver(orchestrator.Driver):
    def _process_prefill_content(
        self, request: Any, tokenizer: Tokenizer, *_: Any
    ) -> tuple[np.ndarray, int]:
        content = request.prefill_content
        if isinstance(content, str):
            return tokenizer.encode(content)
        return np.asarray(content, np.int32), len(content)


class _Service(orchestrator.LLMOrchestrator):
    def __init__(self, driver: Any, student: ServedStudent) -> None:
        super().__init__(driver)
        self.student = student

    async def Decode(self, request: Any, context: Any = None) -> AsyncIterator[Any]:
        """Answers a request, which is checked before JetStream sees it."""
        text = request.WhichOneof("content") == "text_content"
        problem = await asyncio.to_thread(self._problem, request)
        if problem:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, problem)
        stream = TextStream(self.student.chat)
        async for response in super().Decode(request, context):
            for sample in response.stream_content.samples if text else ():
                # JetStream decodes each token alone, which cuts characters of several tokens
                sample.text = "".join(stream.push(token) for token in sample.token_ids)
            yield response

    def _problem(self, request: Any) -> str:
        kind, student = request.WhichOneof("content"), self.student
        if kind is None:
            return "the request has neither text_content nor token_content"
        if request.max_tokens < 1:
            return f"max_tokens={request.max_tokens} must be 1 or more"
        if kind == "text_content":
            conversation = [{"role": "user", "content": request.text_content.text}]
            try:
                tokens = student.encode(conversation)
            except UserError as error:
                return str(error)
        else:
            tokens = np.asarray(request.token_content.token_ids, np.int64)
        if len(tokens) == 0:
            return "the prompt is empty"
        if not 0 <= tokens.min() <= tokens.max() < student.config.vocabulary:
            return f"a token is not in the vocabulary of {student.config.vocabulary}"
        if len(tokens) + request.max_tokens > student.context:
            return (
                f"the prompt has {len(tokens)} tokens, and {student.context} are for it and its "
                f"answer of {request.max_tokens}; shorten it or lower max_tokens"
            )
        return ""


def serve(student: ServedStudent, settings: "Serve") -> None:
    """Serves until Ctrl-C or SIGTERM."""
    engine = Engine(student)
    driver = _Driver(
        prefill_engines=[engine],
        generate_engines=[engine],
        prefill_params=[engine.load_params()],
        generate_params=[engine.load_params()],
        interleaved_mode=True,
    )
    try:
        asyncio.run(_listen(driver, student, settings))
    finally:
        # Its threads may deadlock when they stop; they must not keep the process alive.
        stopping = threading.Thread(target=driver.stop, daemon=True)
        stopping.start()
        stopping.join(GRACE_SECONDS)


async def _listen(driver: Any, student: ServedStudent, settings: "Serve") -> None:
    server = grpc.aio.server()
    services.add_OrchestratorServicer_to_server(_Service(driver, student), server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.port}")
    except RuntimeError:
        raise UserError(
            f"--port={settings.port} cannot be used on {settings.host}; stop what uses it, or give "
            "another"
        ) from None
    await server.start()
    print(f"{host}:{port} serves {settings.label} by JetStream's gRPC; Ctrl-C ends", flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await ended.wait()
    await server.stop(GRACE_SECONDS)
