"""From raw files to minibatches: readers, ingest, validation, plans, the batcher."""
