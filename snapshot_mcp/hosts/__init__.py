"""Into a host: how this program is started there, what each host's entry looks like, and how its file is changed.

It reads no settings and starts nothing. An entry holds no secret: what is secret stands in the settings file, or in a variable
that the host reads. Formats are those that the hosts document in November 2026.
"""
