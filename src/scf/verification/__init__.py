"""Measuring what came back, and deciding about it."""
