"""The configuration of each family, one file each; no torch."""
