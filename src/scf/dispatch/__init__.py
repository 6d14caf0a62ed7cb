"""Doors: ways to have a job run somewhere. Only doors call out."""
