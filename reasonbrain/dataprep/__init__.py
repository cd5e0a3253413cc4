"""Builds data sets in Reason50K's format from target pictures and prompts: `reasonbrain data build`."""
