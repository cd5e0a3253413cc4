"""Distributed training: process groups, DeepSpeed's ZeRO, and the detection of lost processes."""
