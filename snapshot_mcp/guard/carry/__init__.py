"""Guarded calls, from what was asked for to what the caller is told, and the ends of what they started."""
