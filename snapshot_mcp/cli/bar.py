"""A bar on stderr for what reads many bytes; nothing where stderr is not a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapshot_mcp.cli.out import console


@contextmanager
def progress_bar(word: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar while the block runs; yield a function that takes the bytes done and the total."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    screen = console(sys.stderr)
    columns = (TextColumn(word), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=screen, disable=not screen.is_terminal) as progress:
        task = progress.add_task(word, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
