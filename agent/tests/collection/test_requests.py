# SPDX-License-Identifier: GPL-3.0-or-later
"""What each module asks of the agent: one change, read here with the agent's own models."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from blockfleet.model.change import Change
from blockfleet.model.desired import Document
from blockfleet.model.merge import merge, plain

IQN = "iqn.2026-11.com.example:db"
SECRET = "one-long-enough-secret"
MUTUAL = "another-long-enough-secret"
STORED: dict[str, Any] = {
    "discovery": {
        "portals": [{"portal": "192.0.2.10"}, {"portal": "192.0.2.11", "chap": {"user": "d", "secret": SECRET}}]
    },
    "targets": [
        {
            "name": IQN,
            "portals": ["192.0.2.10", "192.0.2.11"],
            "chap": {"user": "host", "secret": SECRET, "mutual_secret": MUTUAL},
            "policy": "round_robin",
            "min_paths": 1,
        }
    ],
    "volumes": [
        {"name": "db01", "target": IQN, "lun": 0, "policy": "round_robin"},
        {"name": "db02", "target": IQN, "lun": 1},
    ],
}

SPEC_DEFAULTS: dict[str, dict[str, Any]] = {
    "iscsi_portal": {"portals": None, "static": None, "chap": None, "exclusive": False, "state": "present"},
    "iscsi_target_login": {
        "target": IQN, "portals": ["all"], "exclusive": False, "min_paths": None, "lifetime": "persistent",
        "forget": False, "state": "present", "header_digest": None, "data_digest": None, "login_timeout": None,
        "noop_interval": None, "noop_timeout": None, "replacement_timeout": None, "error_recovery_level": None,
        "connections": None, "leading_connection": None, "connection_policy": None, "unset": [],
    },
    "iscsi_persistent": {"target": IQN, "volumes": [], "exclusive": False, "state": "present"},
    "iscsi_chap": {
        "target": None, "discovery": None, "user": None, "secret": None, "mutual_user": None,
        "mutual_secret": None, "algorithms": ["sha3-256", "sha256", "sha1", "md5"], "allow_weak_secret": False,
        "state": "present",
    },
    "mpio_policy": {
        "target": None, "volume": None, "default": None, "policy": None, "failback": None, "paths": None,
        "state": "present",
    },
    "iscsi_config": {"mode": "merge", "document": {}, "exclusive": []},
}  # fmt: skip


def volume(name: str, **fields: Any) -> dict[str, Any]:
    """A volume as AnsibleModule hands it over: every suboption there, ``None`` where it was left out."""
    empty = {"target": None, "lun": None, "identity": None, "policy": None, "read_only": False, "attach": "socket"}
    return {"name": name, **empty, **fields}


def desired_after(module: str, before: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return what the desired state is after the module's change was laid over ``before``."""
    source = importlib.import_module(f"ansible_collections.blockfleet.iscsi.plugins.modules.{module}")
    change = Change.model_validate(source.change_for(SPEC_DEFAULTS[module] | options))
    return plain(merge(Document.model_validate(before), change))


@pytest.fixture(autouse=True)
def _importable(plugins: Path) -> None:
    """Make the collection's modules importable here."""


def portals_of(document: dict[str, Any]) -> list[str]:
    return [entry["portal"] for entry in document["discovery"]["portals"]]


class TestPortal:
    def test_portals_in_any_spelling_are_added_once(self) -> None:
        after = desired_after("iscsi_portal", STORED, portals=["192.0.2.10:3260", "[2001:DB8::0010]"])
        assert portals_of(after) == ["192.0.2.10:3260", "192.0.2.11:3260", "[2001:db8::10]:3260"]

    def test_declaring_a_portal_again_without_chap_keeps_its_credentials(self) -> None:
        after = desired_after("iscsi_portal", STORED, portals=["192.0.2.11"])
        assert after["discovery"]["portals"][1]["chap"]["secret"] == SECRET

    def test_exclusive_removes_the_other_portals_and_nothing_else(self) -> None:
        after = desired_after("iscsi_portal", STORED, portals=["192.0.2.11"], exclusive=True)
        assert portals_of(after) == ["192.0.2.11:3260"]
        assert after["targets"] == desired_after("iscsi_portal", STORED, portals=["192.0.2.10"])["targets"]

    def test_absent_removes_the_named_portal_in_any_spelling(self) -> None:
        after = desired_after("iscsi_portal", STORED, portals=["192.0.2.10:3260"], state="absent")
        assert portals_of(after) == ["192.0.2.11:3260"]

    def test_static_targets_come_and_go(self) -> None:
        static = [{"target": IQN, "portals": ["192.0.2.77"]}]
        after = desired_after("iscsi_portal", STORED, static=static)
        assert after["discovery"]["static"] == [{"target": IQN, "portals": ["192.0.2.77:3260"]}]
        gone = desired_after("iscsi_portal", after, static=[{"target": IQN, "portals": None}], state="absent")
        assert gone["discovery"]["static"] == []

    def test_discovery_credentials_go_to_each_named_portal(self) -> None:
        chap = {"user": "x", "secret": MUTUAL, "mutual_user": None, "mutual_secret": None}
        chap |= {"algorithms": ["sha256"], "allow_weak_secret": False}
        after = desired_after("iscsi_portal", STORED, portals=["192.0.2.10", "192.0.2.12"], chap=chap)
        assert [p["chap"]["user"] for p in after["discovery"]["portals"]] == ["x", "d", "x"]


class TestTargetLogin:
    def test_listed_portals_are_added(self) -> None:
        after = desired_after("iscsi_target_login", STORED, portals=["[2001:db8::10]"])
        assert after["targets"][0]["portals"] == ["192.0.2.10:3260", "192.0.2.11:3260", "[2001:db8::10]:3260"]

    def test_exclusive_makes_the_listed_portals_the_only_ones(self) -> None:
        after = desired_after("iscsi_target_login", STORED, portals=["192.0.2.11"], exclusive=True)
        assert after["targets"][0]["portals"] == ["192.0.2.11:3260"]

    def test_all_stands_for_every_portal(self) -> None:
        assert desired_after("iscsi_target_login", STORED)["targets"][0]["portals"] == "all"

    def test_credentials_and_policy_of_the_target_are_left_alone(self) -> None:
        target = desired_after("iscsi_target_login", STORED)["targets"][0]
        assert (target["chap"]["mutual_secret"], target["policy"]) == (MUTUAL, "round_robin")

    def test_login_options_that_are_left_out_stay(self) -> None:
        first = desired_after("iscsi_target_login", STORED, header_digest=["crc32c"], noop_interval=3.0)
        again = desired_after("iscsi_target_login", first, data_digest=["crc32c", "none"])
        login = again["targets"][0]["login"]
        assert (login["header_digest"], login["data_digest"], login["noop_interval"]) == (
            ["crc32c"],
            ["crc32c", "none"],
            3.0,
        )

    def test_connections_are_taken_whole_and_the_rest_of_them_is_left_alone(self) -> None:
        first = desired_after(
            "iscsi_target_login",
            STORED,
            connections=[{"portal": "192.0.2.12", "weight": 4, "standby": None}],
            leading_connection={"weight": None, "standby": True},
            connection_policy="weighted_path",
            error_recovery_level=1,
        )
        further = [{"portal": None, "weight": None, "standby": standby} for standby in (True, None)]
        again = desired_after("iscsi_target_login", first, connections=further)["targets"][0]
        assert first["targets"][0]["connections"] == [{"portal": "192.0.2.12:3260", "weight": 4, "standby": False}]
        assert again["connections"] == [{"weight": 0, "standby": True}, {"weight": 0, "standby": False}]
        assert (again["connection_policy"], again["leading_connection"]) == (
            "weighted_path",
            {"weight": 0, "standby": True},
        )
        assert again["login"]["error_recovery_level"] == 1

    def test_an_empty_list_of_connections_leaves_the_leading_one(self) -> None:
        first = desired_after(
            "iscsi_target_login", STORED, connections=[{"portal": "192.0.2.12", "weight": 4, "standby": None}]
        )
        assert desired_after("iscsi_target_login", first, connections=[])["targets"][0]["connections"] == []

    def test_what_is_unset_is_not_declared_any_more(self) -> None:
        first = desired_after(
            "iscsi_target_login",
            STORED,
            connections=[],
            error_recovery_level=2,
            login_timeout=3.0,
            noop_timeout=4.0,
        )
        after = desired_after(
            "iscsi_target_login", first, unset=["connections", "min_paths", "error_recovery_level", "login_timeout"]
        )["targets"][0]
        assert not {"connections", "min_paths"} & set(after)
        assert "error_recovery_level" not in after["login"]
        assert (after["login"]["login_timeout"], after["login"]["noop_timeout"]) == (10.0, 4.0)

    def test_unsetting_what_is_not_declared_is_no_change(self) -> None:
        before = desired_after("iscsi_target_login", STORED)
        after = desired_after("iscsi_target_login", before, unset=["connection_policy", "error_recovery_level"])
        assert after == before

    def test_absent_with_a_portal_takes_only_that_portal(self) -> None:
        after = desired_after("iscsi_target_login", STORED, portals=["192.0.2.10:3260"], state="absent")
        assert after["targets"][0]["portals"] == ["192.0.2.11:3260"]

    def test_absent_keeps_credentials_unless_told_to_forget(self) -> None:
        kept = desired_after("iscsi_target_login", STORED, state="absent")
        assert "portals" not in kept["targets"][0]
        assert kept["targets"][0]["chap"]["secret"] == SECRET
        without_volumes = STORED | {"volumes": []}
        assert desired_after("iscsi_target_login", without_volumes, state="absent", forget=True)["targets"] == []


class TestPersistent:
    def test_volumes_take_the_common_target_unless_they_name_one(self) -> None:
        other = "iqn.2026-11.com.example:other"
        after = desired_after(
            "iscsi_persistent", {}, volumes=[volume("a", lun=0), volume("b", lun=0, target=other, read_only=True)]
        )
        assert [(v["name"], v["target"], v["read_only"]) for v in after["volumes"]] == [
            ("a", IQN, False),
            ("b", other, True),
        ]

    def test_a_policy_that_is_left_out_stays(self) -> None:
        after = desired_after("iscsi_persistent", STORED, volumes=[volume("db01", lun=0)])
        assert after["volumes"][0]["policy"] == "round_robin"

    def test_exclusive_removes_the_other_volumes(self) -> None:
        after = desired_after("iscsi_persistent", STORED, volumes=[volume("db02", lun=1)], exclusive=True)
        assert [v["name"] for v in after["volumes"]] == ["db02"]

    def test_absent_needs_only_the_name(self) -> None:
        after = desired_after("iscsi_persistent", STORED, volumes=[volume("db01")], state="absent")
        assert [v["name"] for v in after["volumes"]] == ["db02"]


class TestChap:
    def test_credentials_are_declared_whole(self) -> None:
        after = desired_after("iscsi_chap", STORED, target=IQN, user="host", secret=SECRET)
        assert "mutual_secret" not in after["targets"][0]["chap"]

    def test_logins_of_the_target_are_left_alone(self) -> None:
        after = desired_after("iscsi_chap", STORED, target=IQN, user="host", secret=SECRET)
        assert after["targets"][0]["portals"] == ["192.0.2.10:3260", "192.0.2.11:3260"]

    def test_the_target_is_found_in_any_spelling(self) -> None:
        after = desired_after("iscsi_chap", STORED, target=IQN.upper(), user="other", secret=MUTUAL)
        assert [t["chap"]["user"] for t in after["targets"]] == ["other"]

    def test_discovery_has_credentials_of_its_own(self) -> None:
        after = desired_after("iscsi_chap", STORED, discovery=["192.0.2.10"], user="d2", secret=MUTUAL)
        assert [p["chap"]["user"] for p in after["discovery"]["portals"]] == ["d2", "d"]
        assert after["targets"][0]["chap"]["user"] == "host"

    def test_absent_removes_the_credentials_of_the_target_only(self) -> None:
        after = desired_after("iscsi_chap", STORED, target=IQN, state="absent")
        assert "chap" not in after["targets"][0]
        assert after["discovery"]["portals"][1]["chap"]["user"] == "d"

    def test_absent_removes_the_credentials_of_discovery_only(self) -> None:
        after = desired_after("iscsi_chap", STORED, discovery=["all"], state="absent")
        assert [p.get("chap") for p in after["discovery"]["portals"]] == [None, None]
        assert after["targets"][0]["chap"]["user"] == "host"


class TestPolicy:
    @pytest.mark.parametrize(
        ("scope", "find"),
        [
            ({"target": IQN}, lambda d: d["targets"][0].get("policy")),
            ({"volume": "db01"}, lambda d: d["volumes"][0].get("policy")),
            ({"default": True}, lambda d: d["policy"]),
        ],
        ids=["target", "volume", "default"],
    )
    def test_a_policy_is_declared_where_it_was_asked_for(self, scope: dict[str, Any], find: Any) -> None:
        assert find(desired_after("mpio_policy", STORED, policy="fail_over_only", **scope)) == "fail_over_only"

    def test_absent_lets_the_next_wider_policy_count(self) -> None:
        after = desired_after("mpio_policy", STORED, volume="db01", state="absent")
        assert "policy" not in after["volumes"][0]
        after = desired_after("mpio_policy", STORED, target=IQN, state="absent")
        assert "policy" not in after["targets"][0]
        after = desired_after("mpio_policy", STORED | {"policy": "round_robin"}, default=True, state="absent")
        assert after["policy"] == "fail_over_only"

    @pytest.mark.parametrize(
        ("scope", "find"),
        [({"target": IQN}, lambda d: d["targets"][0]), ({"volume": "db01"}, lambda d: d["volumes"][0])],
        ids=["target", "volume"],
    )
    def test_roles_are_taken_whole_and_what_is_left_out_stays(self, scope: dict[str, Any], find: Any) -> None:
        role = {"portal": "192.0.2.11", "primary": None, "standby": None, "weight": 4}
        first = desired_after("mpio_policy", STORED, policy="weighted_path", paths=[role], failback=False, **scope)
        assert find(first)["paths"] == [
            {"portal": "192.0.2.11:3260", "primary": False, "standby": False, "weight": 4}
        ]
        again = find(desired_after("mpio_policy", first, policy="fail_over_only", **scope))
        assert (again["policy"], again["failback"], again["paths"]) == (
            "fail_over_only",
            False,
            find(first)["paths"],
        )
        assert find(desired_after("mpio_policy", first, policy="round_robin", paths=[], **scope))["paths"] == []
        gone = find(desired_after("mpio_policy", first, state="absent", **scope))
        assert not {"policy", "failback", "paths"} & set(gone)

    def test_failback_of_the_host(self) -> None:
        after = desired_after("mpio_policy", STORED, default=True, policy="round_robin", failback=False)
        assert (after["policy"], after["failback"]) == ("round_robin", False)


class TestConfig:
    def test_replace_makes_the_document_all_there_is(self) -> None:
        document = {"volumes": None, "targets": [{"name": IQN, "portals": ["all"], "chap": None, "login": None}]}
        after = desired_after("iscsi_config", STORED, mode="replace", document=document)
        assert after["targets"] == [{"name": IQN, "portals": "all"}]
        assert (after["volumes"], after["discovery"]["portals"]) == ([], [])

    def test_merge_leaves_what_the_document_does_not_name(self) -> None:
        document = {"version": 1, "targets": [{"name": IQN, "policy": "fail_over_only", "portals": None}]}
        after = desired_after("iscsi_config", STORED, document=document)
        assert after["targets"][0]["policy"] == "fail_over_only"
        assert after["targets"][0]["portals"] == ["192.0.2.10:3260", "192.0.2.11:3260"]
        assert len(after["volumes"]) == 2


class TestInfo:
    @pytest.mark.parametrize(
        ("asked", "wanted"),
        [
            (["status"], ["status"]),
            (["all"], ["status", "desired", "observed", "drift", "version"]),
            (["all", "!observed"], ["status", "desired", "drift", "version"]),
            (["!status", "!drift"], ["desired", "observed", "version"]),
        ],
    )
    def test_subsets(self, asked: list[str], wanted: list[str]) -> None:
        source = importlib.import_module("ansible_collections.blockfleet.iscsi.plugins.modules.iscsi_info")
        assert source.wanted(asked) == wanted
