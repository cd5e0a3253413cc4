"""Readers of public data layouts (registered under the entry-point group ``reasonbrain.data``), and ReasonMini."""
