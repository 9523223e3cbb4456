"""Gives out links to the approval page: one process for the home, or where none can be started, this program's own page."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync as in_thread

from snapshot_mcp.guard.consent.states import OPEN

if TYPE_CHECKING:
    from snapshot_mcp.guard.consent.address import PageKeeper
    from snapshot_mcp.guard.consent.approval import Approval
    from snapshot_mcp.guard.consent.doors import PageLink

ENDS_WITH_THIS = "No process can be started for this page, so it ends with the server that gave the link."


class PageLinks:
    """The links of one guard. `keeper` starts the page's process; None for a guard that has none to start."""

    def __init__(self, keeper: "PageKeeper | None") -> None:
        self._keeper = keeper
        self._own_page: Callable[[str], str] | None = None

    @contextmanager
    def falling_back_on(self, own_page: Callable[[str], str]) -> Iterator[None]:
        """Hand out links to this program's own page, where no process can be started, while the block runs.

        `own_page` returns one, given an approval's id; "" if it cannot listen.
        """
        self._own_page = own_page
        try:
            yield
        finally:
            self._own_page = None

    async def link(self, approval_id: str) -> "PageLink":
        """Return the link to an approval's page, which is served from then on."""
        from snapshot_mcp.guard.consent.doors import PageLink
        from snapshot_mcp.guard.consent.errors import PageNotDetached

        try:
            if self._keeper is not None:
                address = await in_thread(self._keeper.keep)
                return PageLink(address.url(approval_id), address.warning)
        except PageNotDetached:
            pass
        url = self._own_page(approval_id) if self._own_page else ""
        return PageLink(url, ENDS_WITH_THIS if url else "")

    async def look_after(self, approvals: "Sequence[Approval]") -> None:
        """Start the page's process again if it was killed while one of these waits."""
        if self._keeper is not None and any(one.state in OPEN for one in approvals):
            await in_thread(self._keeper.revive)
