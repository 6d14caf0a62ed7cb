"""Statements, attestations and their verification."""
