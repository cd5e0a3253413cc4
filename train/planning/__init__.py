"""What a training run needs, found without weights or GPUs: `reasonbrain plan`."""
