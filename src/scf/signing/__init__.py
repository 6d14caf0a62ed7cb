"""Envelopes, keys and signatures. Private keys are opened in `keys.py` alone."""
