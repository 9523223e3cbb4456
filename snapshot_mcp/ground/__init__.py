"""System services that several parts share: private files, SQLite, clocks, HTTP.

A leaf: it imports nothing of ours, only the standard library and, in `http_server` and `web`, the HTTP libraries. It raises
errors of the standard library or its own; callers translate them.
"""
