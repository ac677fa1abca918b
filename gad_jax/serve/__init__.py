"""Serving a student.

`scheduler` decodes the requests of many clients, `api` is OpenAI's HTTP interface to it, and
`jetstream` offers the same programs through JetStream's engine interface and gRPC server.
"""
