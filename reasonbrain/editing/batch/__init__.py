"""Batches of edits: rows, how they are scheduled and executed, and the folder of their results."""
