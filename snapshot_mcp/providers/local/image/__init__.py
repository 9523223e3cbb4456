"""Disks whose bytes are wrapped in an image: qcow2, with the images that it is based on, read and written through QEMU.

`header` reads what an image says of itself, `layers` freezes what a disk consists of, `confined` and `daemon` run QEMU, `disk`
holds such a disk for a capture or a roll-back. QEMU is never asked what a file is: each layer has the driver that a person chose,
and is passed as an open file, so nothing that an image says leads to another file.
"""
