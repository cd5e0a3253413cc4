"""How data in Reason50K's format is made from target pictures and prompts: `reasonbrain data build`."""
