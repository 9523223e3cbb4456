"""The rules of our own zone apart from its bytes: what is there, what may be done, and what a job's end means.

See CATALOGUE.md beside this file.
"""
