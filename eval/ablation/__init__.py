"""What each part is worth: `reasonbrain ablate`."""
