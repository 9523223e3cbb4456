"""Plans what a destructive act would destroy, without I/O and without a clock; only `gather.py` reads a zone."""
