"""Networks and their weights: the decoder, the model families, and where models come from."""
