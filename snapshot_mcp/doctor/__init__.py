"""What is wrong with an installation, and what to do about it. Nothing is changed: databases are read from copies.

`symptom` is one line of the answer; `home` looks at the data folder, `record` at the guard's side; `zone` asks a zone, and
`embedded` looks at what is special to an embedded one.
"""

from snapshot_mcp.doctor.symptom import Health, Symptom

__all__ = ["Health", "Symptom"]
