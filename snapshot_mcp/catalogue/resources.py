"""The rows of disks and of exported images."""

from snapshot_mcp.catalogue.database import Catalogue


def insert_resource(catalogue: Catalogue, resource_id: str, resource_type: str, name: str, path: str) -> None:
    """Enter a disk; `path` is where its store finds it."""
    catalogue.db.execute(
        "INSERT INTO resources (resource_id, resource_type, name, path, created_at, status_at) VALUES (?, ?, ?, ?, ?, ?)",
        (resource_id, resource_type, name, path, catalogue.now(), catalogue.now()),
    )


def insert_image(catalogue: Catalogue, image_id: str, name: str, path: str, snapshot_id: str) -> None:
    """Enter an image that was exported from a snapshot."""
    catalogue.db.execute(
        "INSERT INTO images (image_id, name, path, snapshot_id, created_at) VALUES (?, ?, ?, ?, ?)",
        (image_id, name, path, snapshot_id, catalogue.now()),
    )
