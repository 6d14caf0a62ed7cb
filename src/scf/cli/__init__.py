"""The `scf` command. No logic here."""
