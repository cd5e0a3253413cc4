"""Readers of public data layouts (registered in the entry-point group ``reasonbrain.data``), and ReasonMini."""
