"""The on-disk format of a snapshot: one immutable file that holds what its parent lacks, and the map of the volume.

    file    = header  { record | region }  trailer  footer
    header  = "SNAPMCP" version:u8  length:u32  JSON  blake3(JSON)
    record  = blake3(chunk)  stored_length:u32  codec:u8  0:u24   then the stored bytes of one chunk
    region  = the map of REGION_SIZE bytes of the volume: one place a chunk, in order
    place   = depth:u16  codec:u8  0:u8  stored_length:u32  offset:u64  blake3                      (48 bytes)
    trailer = length:u32  JSON  codec:u8   then one place a region, stored as the codec says
    footer  = offset:u64  length:u32  blake3(trailer)  "SNAPEND" version:u8                          (52 bytes)

Integers are little-endian. A place says where bytes lie: in the file that stands at `depth` in the chain (0 is the full
snapshot), or nowhere (`ZERO`: all zero). Depths mean the same in every file of a chain, since a chain is a path from its
root; so a child copies its parent's places, and an unchanged region is one place that points into an ancestor. The
hash is of the bytes before compression. The header holds what adopts a file that has no row in the catalogue: ids,
the chain (root first, itself last), sizes, time. `parent_hash` is the hash in the parent's footer, so that no other
file can stand in for the parent.

A file is written under a temporary name, synced, renamed, and its folder synced (`SnapshotWriter.commit`). It never
changes afterwards. Every byte that is read back is verified against its hash first; what does not fit is `DamagedSnapshot`.

`format` has the numbers and the models, `writer` makes files, `reader` reads them back, and whole chains.
"""
