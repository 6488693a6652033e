"""Architecture searches on Slurm clusters, with a ledger of everything that happened."""

__version__ = "0.1.0"
