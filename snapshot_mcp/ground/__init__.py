"""What several parts need of the system, and nothing of ours: private files, SQLite, clocks, HTTP.

A leaf: it imports the standard library, and `http_server` and `web` what they serve with; errors are those of the standard
library or of the module itself, and each caller says them in its own words.
"""
