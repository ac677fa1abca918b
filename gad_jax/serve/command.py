"""Loads the student and serves it until Ctrl-C or SIGTERM."""

import gc
import json
import os
import shlex
from functools import partial
from typing import TYPE_CHECKING

import jax

from gad_jax.base import exits, listening, redaction, shortage
from gad_jax.base.console import Note
from gad_jax.base.errors import UserError
from gad_jax.distributed import devices
from gad_jax.distributed.mesh import make_mesh
from gad_jax.serve import api, guard
from gad_jax.serve.scheduler import Scheduler
from gad_jax.serve.student import ServedStudent
from gad_jax.training import loading

if TYPE_CHECKING:
    from gad_jax.serve.__main__ import Serve


def run(serve: "Serve") -> int:
    """Serves by the chosen protocol; returns the exit code."""
    key = _key(serve.key_variable)
    devices.keep_programs()
    with shortage.explained(partial(_memory_advice, serve)):
        if serve.protocol == "jetstream":
            # An optional package: if it is missing, say so before the model loads.
            from gad_jax.serve import jetstream

            jetstream.serve(_load(serve), serve)
        else:
            _serve_http(serve, key)
    return exits.Exit.OK


def _memory_advice(serve: "Serve") -> str:
    slots = f" (now {serve.slots})" if serve.slots else ""
    return (
        f"lower --slots{slots} or --context (now {serve.context}), raise --tensor, or use a "
        "smaller --model"
    )


def _load(serve: "Serve") -> ServedStudent:
    if serve.tensor > jax.local_device_count():
        raise UserError(
            f"--tensor={serve.tensor} needs so many devices, and {jax.local_device_count()} are "
            "present; lower it"
        )
    mesh = make_mesh(tensor=serve.tensor, devices=jax.local_devices()[: serve.tensor])
    with jax.set_mesh(mesh):
        network = loading.load_student(serve.model, mesh)
    chat = network.load_chat(serve.template, serve.chat_template_kwargs)
    student = ServedStudent.make(
        *(network.config, network.params, chat, mesh, serve.slots, serve.context),
        chunk=serve.chunk,
        kept=serve.prefixes if serve.protocol == "openai" else 0,
    )
    print(f"{network.origin}: {student.slots} slots of up to {student.context} tokens", flush=True)
    return student


def _serve_http(serve: "Serve", key: str) -> None:
    def say(address: str) -> None:
        print(f"{address}/v1 serves {serve.label}, {address}/ to chat; Ctrl-C ends", flush=True)
        print(f"next: {_request(address, serve)}", flush=True)

    # A port in use is reported before the model loads.
    with listening.bind(serve.host, serve.port) as bound:
        scheduler = Scheduler(_load(serve), serve.waiting)
        terms = api.Terms(serve.label, key, serve.max_new_tokens, serve.seed)
        note = Note()
        scheduler.start(note.compiling if serve.warm else None)
        note.clear()
        _collect_garbage_seldom()
        try:
            access = guard.Access.of(bound.getsockname()[0], serve.host, serve.origins)
            application = api.make(scheduler, terms, access)
            listening.serve(application, bound, say, guard.Connection)
        finally:
            scheduler.stop()
        scheduler.check()


def _collect_garbage_seldom() -> None:
    """Lets Python look for cycles less often, and never in what is loaded: a request of many small
    lists made it look hundreds of times, which stalled all clients for seconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


def _request(address: str, serve: "Serve") -> str:
    """Returns a command that asks the student."""
    body = {"model": serve.label, "messages": [{"role": "user", "content": "Name a fruit."}]}
    key = f' -H "Authorization: Bearer ${serve.key_variable}"' if serve.key_variable else ""
    place = shlex.quote(f"{address}/v1/chat/completions")
    return f"curl {place}{key} -d {shlex.quote(json.dumps(body))}"


def _key(variable: str) -> str:
    """Returns the API key that clients must send; "" if they need none."""
    if not variable:
        return ""
    redaction.protect(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--key_variable={variable} is not set; export the key under that name")
    return key
