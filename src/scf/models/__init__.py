"""Energies, noise, networks and samplers."""
