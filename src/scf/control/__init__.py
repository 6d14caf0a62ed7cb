"""The operator's hand: commands in a file, and a lock that stops everything."""
