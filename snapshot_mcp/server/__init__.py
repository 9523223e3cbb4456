"""The MCP face: tools, resources, prompts and the picture of a chain, over the contract, the jobs and the guard.

It knows no provider and decides nothing about consent. Wire models never leave it: each tool answers a small model
written for its reader, with a short text beside it, and whatever came from outside is cleaned on the way.
"""
