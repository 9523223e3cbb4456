"""One immutable file a snapshot, laid out as FORMAT.md has it in "A snapshot's file".

`format` has the numbers and the models, `writer` makes files, `reader` reads them back, and whole chains. Every byte that is
read back is verified against its hash first; what does not fit is `DamagedSnapshot`.
"""
