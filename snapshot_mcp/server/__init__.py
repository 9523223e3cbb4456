"""The MCP server: tools, resources, subscriptions, completions and prompts, over the contract, the zones and the guard.

It knows no provider and decides nothing about consent. Tools do not return the contract's models but small models written for
their reader, each with a short text; text from outside is cleaned first.
"""
