"""JobHistory: the jobs of the last weeks, and who asked for and approved them.

The zones remember how their jobs ended, some of them; this home's register remembers what was submitted from here and by whom,
because a provider forgets its jobs; and the guard knows who approved. `JobHistory` puts the three together. It decides nothing:
what is destroyed depends on the guard's records alone. Imported on first use.
"""
