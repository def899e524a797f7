# SPDX-License-Identifier: GPL-3.0-or-later
"""Every kept input through its harness, proof that a harness can find something, a short run of the fuzzer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fuzz import run
from tests.fuzz.harness import HARNESSES

from blockfleet.cli import files
from blockfleet.engine import protocol
from blockfleet.export.connection import Connection as NbdConnection
from blockfleet.iscsi import keys, masking, negotiation, sendtargets
from blockfleet.iscsi.login import LoginMachine
from blockfleet.iscsi.session import Session
from blockfleet.model import loading, names
from blockfleet.model.portal import Portal
from blockfleet.scsi import vpd

SHORT_RUN = 1
"""Seconds for each harness; with their start and the replay they take less than a minute of CPU."""
SEED = 1
"""The short run tries the same inputs in the same order: only the code under test changes what it finds."""


def replay(name: str) -> None:
    for path in run.kept(name):
        try:
            HARNESSES[name].test_one_input(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"finding by {path}: {error!r}") from error


@pytest.mark.parametrize("name", HARNESSES)
def test_kept_inputs_are_no_findings(name: str) -> None:
    assert run.kept(name), "nothing is kept"
    replay(name)


def test_every_folder_of_the_corpus_has_a_harness() -> None:
    assert {path.name for path in run.CORPUS.iterdir() if path.is_dir()} == set(HARNESSES)


@pytest.mark.parametrize("name", HARNESSES)
@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff" * 64, bytes(range(256))], ids=["empty", "zero", "ones", "all"]
)
def test_plain_inputs_are_no_findings(name: str, data: bytes) -> None:
    HARNESSES[name].test_one_input(data)


def _blind_window(session: Session, exp_cmd_sn: int, max_cmd_sn: int) -> bool:
    _UPDATE_WINDOW(session, exp_cmd_sn, max_cmd_sn)
    return True


_UPDATE_WINDOW = Session.update_window

DEFECTS: dict[str, tuple[object, str, object]] = {
    "connection": (Session, "update_window", _blind_window),
    "login": (LoginMachine, "_require_authentication", lambda _: None),
    "text": (negotiation, "_COMBINE", dict.fromkeys(keys.Function, lambda theirs, _: theirs)),
    "sendtargets": (sendtargets, "parse_target_address", lambda text: (Portal(text), None)),
    "scsi": (vpd, "printable", lambda data: data.decode("latin-1")),
    "nbd": (NbdConnection, "_fail", lambda *_: None),
    "control": (protocol, "_decode_object", lambda line, _: json.loads(line)),
    "document": (loading, "_value", lambda fault, _: repr(fault["input"])),
    "addresses": (names, "_ASCII_PUNCTUATION", frozenset("-.:/")),
    "config": (files, "_bound", lambda *_: None),
    "trace": (masking, "HIDDEN", ()),
}
"""A defect for each harness: the kind of thing that it is there to find."""


@pytest.mark.parametrize("name", HARNESSES)
def test_the_corpus_finds_a_defect_that_is_put_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*DEFECTS[name])
    with pytest.raises(AssertionError, match="finding by"):
        replay(name)


@pytest.mark.skipif(not run.AVAILABLE, reason="atheris is not installed: there is no wheel of it for this machine")
@pytest.mark.timeout(run.GRACE)
@pytest.mark.parametrize("name", HARNESSES)
def test_a_short_run_of_the_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    report = run.fuzz(HARNESSES[name], SHORT_RUN, folder=tmp_path, seed=SEED)
    assert not report.fault, f"{report.fault}\n{report.log.read_text(errors='replace')[-3000:]}"
    assert report.executions >= len(run.kept(name))
    assert report.coverage > 50
