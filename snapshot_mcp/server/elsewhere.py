"""What a person can do with restore points beside the tools: have them copied elsewhere, take a single file out."""

from snapshot_mcp.contract.provider import Feature
from snapshot_mcp.contract.text import clean_text
from snapshot_mcp.zones import Zone

NO_COPY = "Nothing copies it off this machine: the operator writes [copies.NAME] with `to` into config.toml (README)."


def follows(place: Zone) -> str:
    """Return which copies follow a backup, or how one is set up; "" for a zone that does not say."""
    names: tuple[str, ...] | None = getattr(place.provider, "copies", None)
    if names is None or Feature.PARTS not in place.provider.features:
        return ""
    if not names:
        return NO_COPY
    return f"It is copied elsewhere by itself: {', '.join(map(clean_text, names))}."


def uncovered(place: Zone) -> str:
    """Return that restore points have no copy, for a list of disks; "" where they may have one."""
    names: tuple[str, ...] | None = getattr(place.provider, "copies", None)
    if names or names is None or Feature.PARTS not in place.provider.features:
        return ""
    return "Nothing has a copy off this machine (set [copies.NAME])."


def one_file(place: Zone) -> str:
    """Return how a single file is had without an export, "" where it cannot be."""
    return "For one file no export is needed: `snapshot-mcp open ID`." if hasattr(place.provider, "copies") else ""
