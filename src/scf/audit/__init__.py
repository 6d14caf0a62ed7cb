"""What happened: an append-only Merkle log with signed tree heads."""
