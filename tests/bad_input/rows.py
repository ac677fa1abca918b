"""One row, whole or changed."""

import json

ROW = {"prompt": "Name a fruit.", "teacher_response": "An apple."}


def line(**changes):
    return json.dumps(ROW | changes).encode() + b"\n"
