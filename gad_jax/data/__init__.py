"""Teacher text on its way to the steps.

`sources` reads and checks rows, `chat` turns them into the student's tokens, `pipeline` orders
them into one batch per step. `packing` lays groups of sequences out in rows of fixed length.
"""
