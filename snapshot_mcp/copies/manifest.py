"""What a copy holds, as one immutable, numbered, signed object a writer: `WRITER/manifests/NUMBER`.

    object    = "SNAPCOPY" version:u8  public key (32 bytes)  signature (64)  body       an unsigned one has zeros there
    body      = gzip(JSON), sealed by age if the copy is
    signature = Ed25519 over "snapshot-mcp manifest 1" NUL name NUL body

A store is untrusted: each field is checked, ids have one form, and names of objects are made of ids here, never read from there.
"""

import gzip
import io
import re
import zlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal, TypeVar

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from snapshot_mcp.contract.errors import Damaged, Unsupported
from snapshot_mcp.contract.parts import Part, Piece, SentPart
from snapshot_mcp.copies.keys import MachineKeys, RecoveryKey, is_signed
from snapshot_mcp.copies.seal import HashingReader, seal, unseal

MAGIC: Final = b"SNAPCOPY"
VERSION: Final = 1
_PUBLIC, _SIGNATURE = 32, 64
HEAD: Final = len(MAGIC) + 1 + _PUBLIC + _SIGNATURE

MAX_BODY: Final = 256 << 20
"""A manifest of half a million restore points has 100 MiB; a longer one is nonsense."""

MAX_UNSIGNED: Final = 16 << 20
"""What is believed of the size of a manifest that nobody has signed: whoever reads it holds it in memory many times."""

LAST_SECOND: Final = 253_402_300_799
"""The end of the year 9999, which is the last that can be shown."""

WRITER: Final = re.compile(r"w-[a-z0-9]{12}")
Id = Annotated[str, Field(pattern=r"^[a-z]{1,8}-[A-Za-z0-9]{4,40}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, le=1 << 62)]
Time = Annotated[int, Field(ge=0, le=LAST_SECOND)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class CopyEntry(_Record):
    """One restore point that is there whole. `until`: it was deleted at home, and stays until then (seconds since 1970)."""

    part_id: Id
    size: Size
    hash: Hash
    index_size: Size
    index_hash: Hash
    stored_bytes: Size
    parents: tuple[Id, ...] = Field(max_length=10_000)
    resource_id: Id
    resource_name: str = Field(max_length=255)
    resource_type: Literal["volume", "instance"]
    name: str = Field(max_length=255)
    description: str = Field(max_length=4096)
    tags: tuple[Annotated[str, Field(max_length=255)], ...] = Field(max_length=1000)
    taken_at: float = Field(ge=0, le=LAST_SECOND)
    consistency: str = Field(max_length=200)
    disk_bytes: Size
    sent_at: Time
    until: Time | None = None

    @classmethod
    def of(cls, part: Part, sent: SentPart) -> "CopyEntry":
        """Return the entry of a part that was sent."""
        names = set(cls.model_fields)
        of_part = {name: getattr(part, name) for name in names & set(Part.__dataclass_fields__)}
        of_sent = {name: getattr(sent, name) for name in names & set(SentPart.__dataclass_fields__)}
        return cls.model_validate(of_part | of_sent)

    def part(self) -> Part:
        """Return it as a part of a zone."""
        shared = set(Part.__dataclass_fields__) & set(type(self).model_fields)
        return Part(size_bytes=self.size, is_whole=True, **{name: getattr(self, name) for name in shared})


class Manifest(_Record):
    """All that a writer's copy holds at a moment. `first`: the oldest manifest that was still kept."""

    format: Literal[1] = 1
    writer: Annotated[str, Field(pattern=rf"^{WRITER.pattern}$")]
    number: Annotated[int, Field(ge=1, le=10**9)]
    first: Annotated[int, Field(ge=1, le=10**9)]
    written_at: Time
    zone: str = Field(max_length=255)
    host: str = Field(max_length=255)
    is_sealed: bool
    entries: tuple[CopyEntry, ...]


class Index(_Record):
    """The pieces of a part, in order: size, hash, stored size, stored hash."""

    part_id: Id
    pieces: tuple[tuple[Size, Hash, Size, Hash], ...]

    def as_pieces(self) -> list[Piece]:
        """Return them."""
        return [Piece(*one) for one in self.pieces]


def manifest_name(writer: str, number: int) -> str:
    """Return the name of a manifest's object."""
    return f"{writer}/manifests/{number:09d}"


def number_of(name: str) -> int | None:
    """Return the number of a manifest by its object's name, None for another object."""
    found = re.fullmatch(rf"{WRITER.pattern}/manifests/(\d{{9}})", name)
    return int(found[1]) if found else None


def part_folder(writer: str, part_id: str) -> str:
    """Return what the names of a part's objects begin with."""
    return f"{writer}/parts/{part_id}/"


def piece_name(writer: str, part_id: str, number: int, *, is_sealed: bool) -> str:
    """Return the name of a piece's object."""
    return f"{part_folder(writer, part_id)}{number:06d}{'.age' if is_sealed else ''}"


def index_name(writer: str, part_id: str) -> str:
    """Return the name of the object that names a part's pieces."""
    return f"{part_folder(writer, part_id)}index"


def content_hash(entries: Sequence[CopyEntry], keys: MachineKeys | None) -> str:
    """Return what tells whether a new manifest would say something new, or be signed by another key."""
    signer = keys.public if keys else b""
    return str(blake3(b"\n".join([signer, *(one.model_dump_json().encode() for one in entries)])).hexdigest())


def write_manifest(manifest: Manifest, keys: MachineKeys | None) -> bytes:
    """Return the object of a manifest, signed if there are keys, sealed if it says so."""
    body = wrap(manifest, keys.recipient if keys and manifest.is_sealed else "")
    public, signature = bytes(_PUBLIC), bytes(_SIGNATURE)
    if keys:
        public = keys.public
        signature = keys.sign(_signed(manifest_name(manifest.writer, manifest.number), body))
    return MAGIC + bytes([VERSION]) + public + signature + body


def wrap(record: _Record, recipient: str) -> bytes:
    """Return a record as it is stored."""
    packed = gzip.compress(record.model_dump_json().encode(), 6, mtime=0)
    return seal(HashingReader(io.BytesIO(packed), len(packed)), recipient)


def signer_of(content: bytes) -> bytes:
    """Return the public key in a manifest's head; zeros for an unsigned one. Raises Damaged, Unsupported."""
    if content[: len(MAGIC)] != MAGIC or len(content) < HEAD:
        raise Damaged("It is not a manifest.")
    if content[len(MAGIC)] != VERSION:
        raise Unsupported(
            f"It was written by a newer version of snapshot-mcp (format {content[len(MAGIC)]}).",
            hint="Update this installation.",
        )
    return content[len(MAGIC) + 1 : len(MAGIC) + 1 + _PUBLIC]


def is_signed_by(name: str, content: bytes, public: bytes) -> bool:
    """Return whether the manifest of this name is signed by this key."""
    signature, body = content[HEAD - _SIGNATURE : HEAD], content[HEAD:]
    return signer_of(content) == public and is_signed(public, signature, _signed(name, body))


def read_manifest(name: str, content: bytes, key: RecoveryKey | None) -> Manifest:
    """Read the manifest of this name; with a key it must be signed by it. Raises Damaged, Unsupported."""
    if key and not is_signed_by(name, content, key.public):
        raise Damaged("It is not signed by the key that belongs to this recovery key.")
    manifest = unwrap(Manifest, content[HEAD:], key, "A manifest", MAX_BODY if key else MAX_UNSIGNED)
    if manifest_name(manifest.writer, manifest.number) != name:
        raise Damaged("It is the manifest of another name.")
    return manifest


R = TypeVar("R", bound=_Record)


def unwrap(kind: type[R], stored: bytes, key: RecoveryKey | None, what: str, limit: int = MAX_BODY) -> R:
    """Read a stored record. Raises Damaged, also for a sealed one without a key."""
    if stored.startswith(b"age-encryption.org/"):
        if key is None:
            raise Damaged(f"{what} is sealed.", hint="Give the recovery key.")
        opened = io.BytesIO()
        unseal(io.BytesIO(stored), opened, key.identity, what)
        stored = opened.getvalue()
    try:
        packed = zlib.decompressobj(wbits=31)
        content = packed.decompress(stored, limit)
        if packed.unconsumed_tail or not packed.eof or packed.unused_data:
            raise Damaged(f"{what} is not whole.")
        return kind.model_validate_json(content)
    except (zlib.error, ValidationError):
        raise Damaged(f"{what} is not whole, or holds nonsense.") from None


def _signed(name: str, body: bytes) -> bytes:
    return b"\0".join([b"snapshot-mcp manifest 1", name.encode(), body])
