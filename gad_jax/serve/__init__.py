"""Serving a student: `scheduler` decodes the requests of many, `api` is OpenAI's HTTP interface to
it, and `jetstream` puts the same programs behind JetStream's engine interface and gRPC server.
"""
