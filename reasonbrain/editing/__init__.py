"""Editing: the pipeline for a few pictures, ``batch/`` for many, and what both do the same way."""
