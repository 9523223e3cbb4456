"""What people decided, and the record of it: HOME/guard.sqlite with audit.head and audit.key. It knows no zone."""
