"""Speed and memory: `reasonbrain bench`."""
