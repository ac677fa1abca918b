"""`python -m gad_jax.serve`: a student that answers by OpenAI's API or by JetStream's gRPC."""

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from gad_jax.base import exits, redaction
from gad_jax.base.errors import UserError
from gad_jax.serve.settings import Serve
from gad_jax.settings import options

if TYPE_CHECKING:
    from gad_jax.serve.student import Student


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    serve = options.parse(
        Serve,
        sys.argv[1:] if argv is None else argv,
        program="python -m gad_jax.serve",
        description="Serves a student: OpenAI's chat completions over HTTP, or JetStream's gRPC.",
    )
    return exits.run_guarded(partial(_run, serve))


def _run(serve: Serve) -> int:
    key = _key(serve.key_variable)
    if serve.protocol == "jetstream":
        from gad_jax.serve import jetstream  # which may not be installed: before the model

        jetstream.serve(load(serve), serve)
    else:
        _serve_http(serve, key)
    return exits.Exit.OK


def load(serve: Serve) -> "Student":
    """Returns the student, ready."""
    import jax

    from gad_jax.data.chat import Chat
    from gad_jax.distributed.mesh import make_mesh
    from gad_jax.serve.student import Student
    from gad_jax.training import loading

    if serve.tensor > jax.local_device_count():
        raise UserError(
            f"--tensor={serve.tensor} needs so many devices, and {jax.local_device_count()} are "
            "present; lower it"
        )
    devices = jax.local_devices()[: serve.tensor]
    mesh = make_mesh(tensor=serve.tensor, devices=devices)
    with jax.set_mesh(mesh):
        network = loading.load_student(serve.model, mesh)
    template = network.template or "none" if serve.template == "auto" else serve.template
    chat = Chat.load(network.tokenizer, template)
    student = Student.make(network.config, network.params, chat, mesh, serve.slots, serve.context)
    print(f"{network.origin}: {student.slots} slots of up to {student.context} tokens", flush=True)
    return student


def _serve_http(serve: Serve, key: str) -> None:
    from gad_jax.base import listening
    from gad_jax.serve import api
    from gad_jax.serve.scheduler import Scheduler

    def say(address: str) -> None:
        print(f"{address}/v1 serves {serve.label}; Ctrl-C ends", flush=True)

    with listening.bind(serve.host, serve.port) as bound:  # before the model is loaded
        decoding = Scheduler(load(serve), serve.waiting)
        terms = api.Terms(serve.label, key, serve.max_new_tokens, serve.seed)
        decoding.start()
        try:
            listening.serve(api.make(decoding, terms, serve.host), bound, say)
        finally:
            decoding.stop()
        decoding.check()


def _key(variable: str) -> str:
    if not variable:
        return ""
    redaction.protect(variable)
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"--key_variable={variable} is not set; export the key under that name")
    return key


if __name__ == "__main__":
    sys.exit(main())
