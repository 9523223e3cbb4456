"""What a person says that a disk's file is, for `zone add` and `zone move`: its format, and the images that it is based on."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from snapshot_mcp.cli.out import say
from snapshot_mcp.contract.errors import BadRequest
from snapshot_mcp.contract.text import clean_text, encodable

if TYPE_CHECKING:
    from snapshot_mcp.app import Form

FORMATS = ("raw", "qcow2")


def add_form(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="",
        help="what the file is, once and for all (default: raw); nothing guesses it",
    )
    parser.add_argument(
        "--base",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="an image that this one is based on, the nearest first; it is only read",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the disk of a machine that is backed up while it runs."""
    parser.add_argument(
        "--qmp",
        type=Path,
        metavar="SOCKET",
        help="the monitor of the machine that runs on the disk (qemu -qmp unix:SOCKET,server=on,wait=off)",
    )
    parser.add_argument(
        "--agent", type=Path, metavar="SOCKET", help="its guest's agent, which freezes the filesystems for the instant"
    )


def add_domain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the disk of a domain of libvirt."""
    parser.add_argument("--domain", default="", metavar="NAME", help="the machine in libvirt that has the disk")
    parser.add_argument(
        "--monitor",
        action="store_true",
        help="back it up while it runs too, through QEMU's monitor; libvirt then marks it as tainted",
    )


def form_of(args: argparse.Namespace) -> "Form":
    """Return what the person said. Raises BadRequest for what contradicts itself."""
    from snapshot_mcp import app

    qmp, agent = (encodable(str(one.absolute())) if one else "" for one in (args.qmp, args.agent))
    if args.domain and args.qmp:
        raise BadRequest(
            "--domain and --qmp exclude each other.", hint="Libvirt keeps the monitor of its domains to itself."
        )
    for option, value, needs, other in (
        ("--agent", args.agent, "--qmp", args.qmp),
        ("--monitor", args.monitor, "--domain", args.domain),
    ):
        if value and not other:
            raise BadRequest(f"{option} needs {needs}.", hint=f"Add {needs}, or leave {option} out.")
    monitored = args.monitor or not args.domain
    return app.disk_form(args.format, args.base, qmp, agent, encodable(args.domain), is_monitored=monitored)


def say_form(args: argparse.Namespace) -> None:
    """Show the images and the machine that the disk was registered with."""
    if args.qmp:
        say(f"  backed up while it runs, through {clean_text(args.qmp.absolute(), 400)}")
    if args.monitor:
        say("  backed up while it runs, through its monitor: libvirt will mark the domain as tainted (custom-monitor)")
    say(*(f"  based on {clean_text(one.absolute(), 400)}, which is only read" for one in args.base))
