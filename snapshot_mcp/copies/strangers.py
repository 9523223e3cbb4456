"""Manifests that this zone does not know: whether they were written under its writer's name with its key."""

from snapshot_mcp.contract.errors import ZoneError
from snapshot_mcp.copies.keys import MachineKeys, RecoveryKey
from snapshot_mcp.copies.manifest import MAX_UNSIGNED, is_signed_by, manifest_name, read_manifest, signer_of
from snapshot_mcp.copies.stores import CopyStore, read_small


def written_by(store: CopyStore, writer: str, number: int, keys: MachineKeys | None) -> bool:
    """Return whether a manifest was signed with this machine's key; without keys, whether it is one at all."""
    name = manifest_name(writer, number)
    try:
        content = read_small(store, name, MAX_UNSIGNED)
        if len(content) > MAX_UNSIGNED:
            return False
        if keys:
            return signer_of(content) == keys.public and is_signed_by(name, content, keys.public)
        nobody: RecoveryKey | None = None
        return not any(signer_of(content)) and read_manifest(name, content, nobody).writer == writer
    except ZoneError:
        return False
