"""Editing: the pipeline, batches, and the core that both use."""
