"""An S3-compatible object store, through `obstore`. No credentials are looked for but those that the settings give."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from snapshot_mcp.contract.errors import Forbidden, NotFound, Unavailable, ZoneError
from snapshot_mcp.contract.text import MESSAGE_CHARACTERS, clean_text
from snapshot_mcp.copies.errors import needs_extra
from snapshot_mcp.copies.settings import StoreSettings
from snapshot_mcp.copies.stores import BLOCK, HeldObject, Pace

if TYPE_CHECKING:
    from snapshot_mcp.copies.stores.lock import ObjectLock

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store
except ImportError:
    raise needs_extra("A copy in an object store") from None

RETRIES: Final = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=8), "base": 2},
}
TIMEOUT: Final = "60s"
REMOVED_AT_ONCE: Final = 500
MAX_OBJECTS: Final = 5_000_000
_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")


class ObjectStore:
    """A bucket, below a prefix."""

    def __init__(self, settings: StoreSettings, lock: "ObjectLock | None" = None) -> None:
        self._lock = lock
        self._place = clean_text(settings.to)
        keys: dict[str, Any] = {}
        if not settings.instance_metadata:
            assert settings.access_key_id
            assert settings.secret_access_key
            keys = {
                "access_key_id": settings.access_key_id.get_secret_value(),
                "secret_access_key": settings.secret_access_key.get_secret_value(),
            }
            if settings.session_token:
                keys["session_token"] = settings.session_token.get_secret_value()
        if settings.endpoint:
            keys |= {"endpoint": settings.endpoint, "virtual_hosted_style_request": False}
        options: Any = {"timeout": TIMEOUT, "connect_timeout": "10s"}
        if settings.endpoint.startswith("http://"):
            options["allow_http"] = True
        self._store = S3Store(
            settings.bucket,
            prefix=settings.prefix or None,
            region=settings.region,
            client_options=options,
            retry_config=RETRIES,  # type: ignore[arg-type]
            **keys,
        )

    def prepare(self, *, is_known: bool) -> None:
        """Nothing is to be prepared: what is wrong is said by the first request."""

    def put(self, name: str, content: bytes, pace: Pace | None = None) -> None:
        """Store an object, once its time has come: never in parts, which a kill would leave there."""
        if pace:
            pace(len(content))
        with self._errors(name):
            obstore.put(self._store, name, content, use_multipart=False)
        if self._lock and not name.endswith("/time"):
            self._lock.apply(name)

    def create(self, name: str, content: bytes) -> bool:
        """Store a small object unless there is one."""
        with self._errors(name):
            try:
                obstore.put(self._store, name, content, mode="create")
            except AlreadyExistsError:
                return False
        if self._lock:
            self._lock.apply(name)
        return True

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes."""
        with self._errors(name):
            yield from map(bytes, obstore.get(self._store, name).stream(min_chunk_size=BLOCK))

    def list(self, prefix: str) -> Iterator[HeldObject]:
        """Yield the objects below a prefix, a thousand a request."""
        with self._errors(prefix):
            count = 0
            for batch in obstore.list(self._store, prefix or None, chunk_size=1000):
                count += len(batch)
                if count > MAX_OBJECTS:
                    raise Unavailable(
                        f"The object store {self._place} lists without an end.", hint="Look at the store."
                    )
                for one in batch:
                    yield HeldObject(one["path"], one["size"], one["last_modified"].timestamp())

    def remove(self, names: Collection[str]) -> None:
        """Remove objects, many a request."""
        them = list(names)
        for start in range(0, len(them), REMOVED_AT_ONCE):
            with self._errors(them[start]):
                obstore.delete(self._store, them[start : start + REMOVED_AT_ONCE])

    def settle(self, prefix: str) -> None:
        """What a store has answered is durable."""

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise self._failed(error, name, NotFound) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._failed(error, name, Forbidden) from None
        except BaseError as error:
            raise self._failed(error, name, Unavailable) from None

    def _failed(self, error: Exception, name: str, kind: type[ZoneError]) -> ZoneError:
        """Say what the store answered, in its code if it has one; its texts can hold request ids and headers."""
        text = str(error)
        code = _CODE.search(text)
        why = code[1] if code else clean_text(text.partition("\n")[0].partition("Error performing")[2] or text, 160)
        hint = {
            "NoSuchBucket": "Make the bucket, or correct `to`.",
            "InvalidAccessKeyId": "Correct access_key_id.",
            "SignatureDoesNotMatch": "Correct secret_access_key.",
            "AccessDenied": "The key needs to list, get, put and delete there.",
        }.get(why, "Check that the store can be reached; what was sent is kept, and the copy goes on from there.")
        if why == "NoSuchBucket":
            kind = Unavailable
        what = clean_text(
            f"The object store {self._place} did not do what was asked ({name}): {why}.", MESSAGE_CHARACTERS
        )
        return kind(what, hint=hint)
