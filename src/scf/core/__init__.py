"""Words every room shares: errors, units, identities, canonical bytes, clocks. No I/O here."""
