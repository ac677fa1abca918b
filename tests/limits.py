"""Limits of the operating system that a command is run under."""


def largest_file(kib: int) -> list[str]:
    """What a command is put behind so that no file it writes grows beyond `kib` KiB.

    Not a `preexec_fn`, which runs Python after a fork: jax, once loaded, warns of that.
    """
    return ["bash", "-c", f'ulimit -f {kib} && exec "$@"', "limited"]
