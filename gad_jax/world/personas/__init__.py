"""Exact measurement on a pretrained student; its command is `__main__.py`."""
