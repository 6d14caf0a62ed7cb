"""The conductor: Pulse, Orient, Decide, Act. It asks, waits, records; it computes nothing."""
