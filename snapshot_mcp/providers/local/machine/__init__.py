"""Running machines (QEMU): a disk is read as of one instant while its machine goes on writing (FORMAT.md, "Running machines").

`monitor` talks to QEMU through its own socket (`qmp`) or libvirt's (`virsh`); `devices` finds the disk that was registered,
`filters` puts the instant between a device and its disk and takes everything out again, `freezing` has the guest's agent freeze
its filesystems for it (`frozen`, a program of its own). `disk` is what a capture reads; `left` remembers which machines have
something of ours.
"""
