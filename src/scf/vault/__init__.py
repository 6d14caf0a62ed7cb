"""Fossils, shards, manifests, quarantine and the journal: what the drive holds and may be believed."""
