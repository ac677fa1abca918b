"""Teacher text on its way to the steps.

`sources` reads and checks rows, `chat` encodes conversations as the student's tokens, `pipeline`
encodes all rows once, `epochs` draws one batch per step. `core/packing.py` lays a batch out in
memory.
"""
