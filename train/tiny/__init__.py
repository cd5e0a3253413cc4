"""How the embedded default is made: `make tiny`."""
