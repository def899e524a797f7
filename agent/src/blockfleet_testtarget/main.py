# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `blockfleet-testtarget`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from blockfleet_testtarget import config as configuration
from blockfleet_testtarget.config import Config, ConfigError
from blockfleet_testtarget.control import ControlServer
from blockfleet_testtarget.target import TestTarget
from blockfleet_testtarget.threaded import new_loop

DESCRIPTION = """\
An iSCSI target for tests and demonstrations, with faults that can be armed.

It prints one JSON line with the addresses of its portals once it accepts logins, and ends at
SIGTERM or SIGINT. It keeps nothing but what its file LUNs hold, and is not meant for real data."""
EPILOG = """\
examples:
  blockfleet-testtarget --portal 127.0.0.1:0 --lun 0:ram:64M
  blockfleet-testtarget --portal 127.0.0.1:3261 --portal [::1]:3261 --lun 0:file:/tmp/disk.img \\
      --chap-user alice --chap-secret-file secret.txt --control /tmp/target.sock"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="blockfleet-testtarget",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML or JSON document with everything; other options add to it")
    add(
        "--portal",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="listen here; may be repeated; port 0: any",
    )
    add("--target", metavar="NAME", help=f"iSCSI name of the target (default {configuration.DEFAULT_TARGET})")
    add(
        "--lun",
        metavar="N:KIND:WHAT",
        action="append",
        default=[],
        help="a LUN, N:ram:SIZE or N:file:PATH; may be repeated (default 0:ram:64M)",
    )
    add("--chap-user", metavar="USER", help="name that initiators authenticate with")
    add("--chap-secret-file", metavar="FILE", help="file with the secret for it")
    add("--mutual-user", metavar="USER", help="name that the target authenticates itself with")
    add("--mutual-secret-file", metavar="FILE", help="file with the secret for it")
    add("--control", metavar="SOCK", help="Unix socket that takes faults and questions as JSON lines")
    add("--ready-file", metavar="FILE", help="write the JSON line of the portals here too")
    add("--ready-fd", metavar="FD", type=int, help="write the JSON line of the portals to this descriptor too")
    return parser


def build_config(options: argparse.Namespace) -> Config:
    """Make the Config that the options ask for; raises ConfigError."""
    document: dict[str, Any] = read_document(Path(options.config)) if options.config else {}
    if options.portal:
        document["portals"] = [*document.get("portals", []), *options.portal]
    document.setdefault("portals", ["127.0.0.1:3260"])
    document.setdefault("record_pdus", 0)
    luns = options.lun or ([] if document.get("targets") else ["0:ram:64M"])
    if luns or options.target or options.chap_user:
        target = _named_target(document, options.target)
        for text in luns:
            _add_lun(document, target, text)
        _add_chap(target, options)
    return configuration.read_config(document)


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON file; raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    try:
        if path.suffix == ".json":
            document = json.loads(text)
        else:
            import yaml  # noqa: PLC0415 - only who uses YAML needs it

            document = yaml.safe_load(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is no mapping")
    return document


def _named_target(document: dict[str, Any], name: str | None) -> dict[str, Any]:
    targets: list[dict[str, Any]] = document.setdefault("targets", [])
    for target in targets:
        if name is None or target.get("name") == name:
            return target
    targets.append({"name": name or configuration.DEFAULT_TARGET})
    return targets[-1]


def _add_lun(document: dict[str, Any], target: dict[str, Any], text: str) -> None:
    number, _, rest = text.partition(":")
    kind, _, what = rest.partition(":")
    if not number.isdecimal() or kind not in ("ram", "file") or not what:
        raise ConfigError(f"--lun {text}: write N:ram:SIZE or N:file:PATH")
    name = f"{target['name']}-{number}"
    unit = {"kind": kind, "size": what} if kind == "ram" else {"kind": kind, "path": what}
    document.setdefault("units", {})[name] = unit
    target.setdefault("luns", {})[int(number)] = name


def _add_chap(target: dict[str, Any], options: argparse.Namespace) -> None:
    if bool(options.chap_user) != bool(options.chap_secret_file):
        raise ConfigError("--chap-user and --chap-secret-file go together")
    if bool(options.mutual_user) != bool(options.mutual_secret_file):
        raise ConfigError("--mutual-user and --mutual-secret-file go together")
    if options.chap_user:
        target["chap"] = {"user": options.chap_user, "secret_file": options.chap_secret_file}
        if options.mutual_user:
            target["chap"]["mutual_user"] = options.mutual_user
            target["chap"]["mutual_secret_file"] = options.mutual_secret_file


async def serve(config: Config, options: argparse.Namespace) -> None:
    """Run the target until a signal ends it."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with contextlib.AsyncExitStack() as stack:
        target = await stack.enter_async_context(TestTarget(config))
        if options.control:
            await stack.enter_async_context(ControlServer(target, Path(options.control)))
        announce(target, options)
        await stopping.wait()


def announce(target: TestTarget, options: argparse.Namespace) -> None:
    """Tell where the portals are."""
    line = json.dumps(
        {
            "format_version": 1,
            "pid": os.getpid(),
            "portals": [portal.address for portal in target.portals],
            "targets": list(target.nodes),
        }
    )
    if options.ready_file:
        path = Path(options.ready_file)
        partial = path.with_name(path.name + ".new")
        partial.write_text(line + "\n", encoding="utf-8")
        partial.rename(path)
    if options.ready_fd is not None:
        os.write(options.ready_fd, (line + "\n").encode())
        os.close(options.ready_fd)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def run(config: Config, options: argparse.Namespace) -> None:
    """Run on uvloop where it is installed, on asyncio otherwise."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serve(config, options))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns 0, or 2 when options or configuration are wrong."""
    options = build_parser().parse_args(arguments)
    try:
        run(build_config(options), options)
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"blockfleet-testtarget: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
