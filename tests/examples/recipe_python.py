"""Stands for `python` in the recipes' scripts: the test's process runs the command, so that jax is
imported once and programs are compiled once for all of them."""

import json
import os
import socket
import sys


def main() -> int:
    given = sys.argv[1:]
    if given[0] != "-m" or given[1].endswith(".serve"):  # this one stays until it is ended
        os.execv(sys.executable, [sys.executable, *given])
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.environ["RECIPE_SOCKET"])
        with client.makefile("rw", encoding="utf-8") as file:
            file.write(json.dumps({"cwd": os.getcwd(), "given": given}) + "\n")
            file.flush()
            return int(file.readline())


if __name__ == "__main__":
    sys.exit(main())
