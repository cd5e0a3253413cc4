"""Ablations: `reasonbrain ablate`."""
