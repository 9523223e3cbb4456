"""The rules of our own zone, apart from its bytes: what exists, what may be done, and how a job ends (CATALOGUE.md)."""
