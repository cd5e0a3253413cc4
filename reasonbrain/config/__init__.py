"""The configuration: ``schema`` has its sections, ``loading`` reads presets, files and overrides."""
