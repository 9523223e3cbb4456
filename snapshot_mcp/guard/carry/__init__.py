"""Runs guarded calls, from the request to the result, and records how their jobs ended."""
