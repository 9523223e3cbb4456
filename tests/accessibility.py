"""What axe-core finds in a page or frame of a browser."""

from typing import Any

from tests.hosts.programs import folder_of, npm

PACKAGE = "axe-core@4"


async def violations(frame: Any) -> list[tuple[str, str]]:
    """The rules that are broken, each with the first element that breaks it."""
    npm(PACKAGE, "axe")
    if not await frame.evaluate("Boolean(window.axe)"):
        path = folder_of(PACKAGE) / "node_modules" / "axe-core" / "axe.min.js"
        await frame.evaluate(path.read_text(encoding="utf-8"))
    found = await frame.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]]
