"""Trains the embedded default model from scratch: `make tiny`."""
