"""Doors: ways to have a job run. A job goes in as a bundle and comes back as one."""
