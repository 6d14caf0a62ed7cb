"""Readers: each knows one kind of file and yields its records in order, in bounded memory."""
