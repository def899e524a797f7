# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts of a module result that need no agent."""

from __future__ import annotations

import pytest
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _convergence, _options


@pytest.mark.parametrize(
    ("field", "names", "option"),
    [
        ("targets[0].name", (("targets[0].name", "target"),), "target"),
        ("document.targets[0].name", (("targets[0].name", "target"),), "target"),
        ("targets[0].chap.secret", (("targets[0].chap", ""),), "secret"),
        ("targets[0].chap", (("targets[0].chap", ""),), "targets[0].chap"),
        ("volumes[1].lun", (("targets", "x"),), "volumes[1].lun"),
        ("", (("targets", "x"),), ""),
    ],
)
def test_a_field_of_the_document_becomes_the_option(field, names, option):
    assert _convergence.option_name(field, names) == option


def test_the_first_name_that_fits_counts():
    names = (("discovery.portals[0].chap", ""), ("discovery.portals", "discovery"))
    assert _convergence.option_name("discovery.portals[0].chap.user", names) == "user"
    assert _convergence.option_name("discovery.portals[1].chap.user", names) == "discovery[1].chap.user"


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        ({"name": "ISDSC_X", "message": "no answer"}, "no answer (ISDSC_X)"),
        ({"message": "no answer"}, "no answer"),
        ({}, "unknown problem"),
        ("a word", "a word"),
    ],
)
def test_a_problem_is_one_line(problem, text):
    assert _convergence.problem_text(problem) == text


class Ended(Exception):
    """Carries what a module ended with."""


class Module:
    """As much of AnsibleModule as a judgement takes."""

    def __init__(self):
        self.params = {"wait_timeout": 30.0}

    def fail_json(self, **result):
        raise Ended(result)


@pytest.mark.parametrize(
    ("waited", "text"),
    [
        ({"waited": 30.004}, "the host did not reach the declared state within 30 s: no answer (ISDSC_X)"),
        ({"waited": 30.0}, "the host did not reach the declared state within 30 s: no answer (ISDSC_X)"),
        ({}, "the host did not reach the declared state within 30 s: no answer (ISDSC_X)"),
        (
            {"waited": 1.25},
            "the host did not reach the declared state, and waiting longer would not help: no answer (ISDSC_X)",
        ),
    ],
    ids=["after the limit", "at the limit", "unsaid", "a final cause"],
)
def test_a_failure_says_whether_time_or_a_final_cause_ended_the_wait(waited, text):
    plan = {"status": "not_verified", "problems": [{"name": "ISDSC_X", "message": "no answer"}], **waited}
    with pytest.raises(Ended) as caught:
        _convergence._judge(Module(), plan, {})
    assert caught.value.args[0]["msg"] == text


def test_what_was_left_out_is_not_sent_at_any_depth():
    options = {"a": None, "b": [{"c": None, "d": 0}, None], "e": {"f": None}, "g": False}
    assert _options.given(options) == {"b": [{"d": 0}], "e": {}, "g": False}


def test_an_option_cannot_come_from_two_parts():
    with pytest.raises(ValueError, match="wait_timeout is specified twice"):
        _options.merged(_options.apply(), _options.apply())


def test_parts_are_new_every_time_so_that_modules_may_change_them():
    _options.chap()["user"]["required"] = True
    assert "required" not in _options.chap()["user"]
