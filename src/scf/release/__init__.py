"""The weekly archive, and the one file that checks it."""
