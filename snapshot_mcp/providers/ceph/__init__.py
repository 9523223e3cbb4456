"""A zone on Ceph: every RBD image of a pool is a disk, its restore points are protected RBD snapshots (CEPH.md)."""
