"""scf: a self-hosted foundry that keeps physics models current, with evidence for every claim."""

__version__ = "0.1.0"
