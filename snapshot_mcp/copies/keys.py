"""The recovery key, which only a person has, and what the machine keeps of it: it can seal and sign, and never open.

The recovery key is one line: the identity of age, `+`, and the public signing key with a check value (base32).
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from snapshot_mcp.contract.errors import BadRequest, NotUsable
from snapshot_mcp.copies.errors import needs_extra
from snapshot_mcp.copies.seal import age
from snapshot_mcp.ground.files import fsync_folder, make_private_folder, written_beside

KEYS_FILE: Final = "copies/keys.json"
"""In the home folder, mode 0600."""

_CHECK_BYTES: Final = 3
_PUBLIC_BYTES: Final = 32


def ed25519() -> Any:
    """Return the module of Ed25519 signatures. Raises Unsupported without the package."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519 as module
    except ImportError:
        raise needs_extra("A signed copy") from None
    return module


@dataclass(frozen=True, slots=True, repr=False)
class RecoveryKey:
    """What opens the copies, and proves who wrote them."""

    identity: str
    public: bytes

    @property
    def text(self) -> str:
        """The key as a person keeps it."""
        check = blake3(self.identity.encode() + self.public).digest(_CHECK_BYTES)
        return f"{self.identity}+{base64.b32encode(self.public + check).decode()}"

    @staticmethod
    def parse(text: str) -> "RecoveryKey":
        """Read a key as it was typed or pasted. Raises BadRequest, which repeats nothing of it."""
        words = "".join(text.split()).upper()
        identity, _, tail = words.partition("+")
        wrong = BadRequest(
            "This is not a recovery key.", hint="It begins with AGE-SECRET-KEY-1 and has one +; copy it whole."
        )
        try:
            raw = base64.b32decode(tail)
        except ValueError:
            raise wrong from None
        key = RecoveryKey(identity, raw[:_PUBLIC_BYTES])
        if len(raw) != _PUBLIC_BYTES + _CHECK_BYTES or key.text != f"{identity}+{tail}":
            raise wrong
        key.recipient()
        return key

    def recipient(self) -> str:
        """Return what the machine seals for."""
        try:
            return str(age().x25519.Identity.from_str(self.identity).to_public())
        except age().IdentityError:
            raise BadRequest("This is not a recovery key.", hint="Copy it whole.") from None


@dataclass(frozen=True, slots=True, repr=False)
class MachineKeys:
    """What the machine keeps: the recipient that it seals for, and the key that it signs with."""

    recipient: str
    signing: bytes

    @property
    def public(self) -> bytes:
        """The public signing key."""
        private = ed25519().Ed25519PrivateKey.from_private_bytes(self.signing)
        return bytes(private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return a signature of 64 bytes."""
        return bytes(ed25519().Ed25519PrivateKey.from_private_bytes(self.signing).sign(message))


def is_signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return whether the signature is of this message by this key."""
    from cryptography.exceptions import InvalidSignature

    try:
        ed25519().Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def make_keys() -> tuple[RecoveryKey, MachineKeys]:
    """Make both keys; nothing is stored."""
    identity = str(age().x25519.Identity.generate())
    private = ed25519().Ed25519PrivateKey.generate()
    recovery = RecoveryKey(identity, bytes(private.public_key().public_bytes_raw()))
    return recovery, MachineKeys(recovery.recipient(), bytes(private.private_bytes_raw()))


def read_keys(home: Path) -> MachineKeys | None:
    """Return the machine's keys, None if none were made. Raises NotUsable if their file is damaged."""
    path = home / KEYS_FILE
    try:
        found = json.loads(path.read_bytes())
        keys = MachineKeys(str(found["recipient"]), bytes.fromhex(found["signing"]))
        if len(keys.signing) != _PUBLIC_BYTES or not keys.recipient.startswith("age1"):
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise NotUsable(
            f"The keys of the copies in {str(path)!r} cannot be read.",
            hint="Put the file back from a backup, or move it away and make new keys: `snapshot-mcp copy key`.",
        ) from None
    return keys


def keep_keys(home: Path, keys: MachineKeys) -> None:
    """Write the machine's keys for the first time. Raises NotUsable if there are some."""
    path = home / KEYS_FILE
    make_private_folder(path.parent)
    content = json.dumps({"recipient": keys.recipient, "signing": keys.signing.hex()}).encode()
    with written_beside(path, content) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise keys_exist(home) from None
    fsync_folder(path.parent)


def keys_exist(home: Path) -> NotUsable:
    """Return the refusal to replace the keys: what was sealed so far opens with the old recovery key alone."""
    return NotUsable(
        f"This home has keys for its copies already ({str(home / KEYS_FILE)!r}).",
        hint="Their recovery key was shown when they were made. If it is lost, move that file away, make new keys, and give each"
        " copy a new, empty place: what is there now opens with the old key alone.",
    )
