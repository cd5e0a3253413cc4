"""What the plug-ins of several slots share: attention blocks and the precision of frozen bases."""
