"""Keeps what people decided, and the audit record: HOME/guard.sqlite with audit.head and audit.key. It never talks to a zone."""
