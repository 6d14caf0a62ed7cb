"""Promoted generations and the pointer to the champion."""
