"""Trains the second edition of the embedded default, on ReasonMini 2."""
