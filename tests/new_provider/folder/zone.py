"""`AtticZone`: the Provider over a vendor's client library."""

from attic_client import Client


class AtticZone(Client):
    """A zone that says itself where it is."""

    @property
    def location(self) -> str:
        """The shelf."""
        return f"attic:{self.folder}"
