"""The tools' acts as commands, for the day when no assistant is there.

Each command calls the tool of the MCP server that it is about, in this process: the same service, the same guard, the same
words. `acts` says which command calls what, `session` calls it and waits, `words` puts commands where an answer names tools,
`consent` asks the person for the word and the PIN, `to_file` writes a restore point out.
"""
