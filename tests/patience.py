"""How long a test waits."""

PATIENCE_SECONDS = 60.0
"""How long a test waits for what must happen: never reached but by a failure, so a machine at a load of 20 gets there."""
