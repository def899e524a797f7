# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock of the runtime directory, log lines and notifications of the service manager."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import pytest

from blockfleet.engine import notify
from blockfleet.engine.logs import BURST, PERIOD, REMEMBERED, LineFormatter, RepeatFilter
from blockfleet.engine.process import RuntimeLock
from blockfleet.model.errors import BlockfleetError
from blockfleet.model.isdsc import Isdsc


def test_second_holder_is_refused_and_told_who_the_first_is(tmp_path: Path) -> None:
    lock = RuntimeLock.acquire(tmp_path / "run")
    with pytest.raises(BlockfleetError, match=f"process {os.getpid()}") as caught:
        RuntimeLock.acquire(tmp_path / "run")
    assert caught.value.code is Isdsc.STATE_LOCKED
    lock.release()
    RuntimeLock.acquire(tmp_path / "run").release()


def test_runtime_directory_that_is_a_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(BlockfleetError) as caught:
        RuntimeLock.acquire(tmp_path / "run")
    assert "--runtime-dir" in caught.value.remedy


def test_lock_is_not_taken_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "engine.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BlockfleetError):
        RuntimeLock.acquire(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def record(text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("blockfleet.x", level, "f", 1, "%s", (text,), None)


def test_repeated_lines_are_limited_and_then_counted() -> None:
    now = [0.0]
    repeat = RepeatFilter(clock=lambda: now[0])
    passed = [repeat.filter(record("login failed")) for _ in range(BURST + 7)]
    assert passed == [True] * BURST + [False] * 7
    assert repeat.filter(record("another line"))
    now[0] = PERIOD
    late = record("login failed")
    assert repeat.filter(late)
    assert late.getMessage() == "login failed (and 7 more in 60 s)"
    again = record("login failed")
    assert repeat.filter(again)
    assert again.getMessage() == "login failed"


def test_memory_for_repeats_is_bounded() -> None:
    repeat = RepeatFilter(clock=lambda: 0.0)
    for number in range(3 * REMEMBERED):
        assert repeat.filter(record(f"line {number}"))
    assert len(repeat._seen) == REMEMBERED


def test_text_from_a_peer_cannot_end_a_log_line_or_drive_a_terminal() -> None:
    line = LineFormatter(journal=False).format(record("name\nERROR forged \x1b[2J\u2028"))
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u2028" not in line
    assert r"name\nERROR forged \x1b[2J" in line


def test_journal_line_carries_its_priority() -> None:
    assert LineFormatter(journal=True).format(record("x", logging.ERROR)) == "<3>ERROR blockfleet.x: x"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listener


def test_notification_is_one_datagram_of_assignments(manager) -> None:
    assert notify.notify("READY=1", "STATUS=x")
    assert manager.recv(100) == b"READY=1\nSTATUS=x"


def test_abstract_notification_socket(monkeypatch) -> None:
    name = f"blockfleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify.notify("STOPPING=1")
        assert listener.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens/here"])
def test_no_service_manager_is_no_error(monkeypatch, address) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("30000000", None, 15.0),
        ("30000000", "own", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
        (None, None, None),
    ],
)
def test_watchdog_interval_is_half_of_what_the_manager_allows(monkeypatch, usec, pid, expected) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert notify.watchdog_interval() == expected


async def test_watchdog_is_fed_from_the_event_loop(manager, monkeypatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    manager.setblocking(False)
    loop = asyncio.get_running_loop()
    feeder = asyncio.create_task(notify.keep_alive())
    for _ in range(3):
        assert await asyncio.wait_for(loop.sock_recv(manager, 100), 5) == b"WATCHDOG=1"
    feeder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await feeder
