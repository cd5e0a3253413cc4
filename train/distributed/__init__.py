"""Training in several processes: who they are, DeepSpeed's ZeRO, and what happens when one is lost."""
