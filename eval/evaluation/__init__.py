"""Benchmarks, metrics, judges and reports: `reasonbrain eval`."""
