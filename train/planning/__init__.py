"""Estimates the memory and compute of a training run without weights or GPUs: `reasonbrain plan`."""
