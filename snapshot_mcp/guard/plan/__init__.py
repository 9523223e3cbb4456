"""What a destructive act would take, decided without I/O and without a clock; `gather.py` alone reads a zone."""
