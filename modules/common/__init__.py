"""Code shared by the plug-ins of several slots: attention blocks and the precision of frozen base models."""
