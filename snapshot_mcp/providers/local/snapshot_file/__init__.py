"""Snapshot files, one immutable file per snapshot (FORMAT.md, "A snapshot's file").

`format` has the constants and models, `writer` writes files, `reader` reads and verifies files and whole chains.
"""
