"""One script a question. `python -m benchmarks [NAME...]` runs them and keeps the JSON."""
