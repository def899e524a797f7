# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation says what the modules take: option by option, at every depth."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.blockfleet.iscsi.plugins.module_utils import _options

ROOT = Path(__file__).parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins/modules").glob("*.py"))
STATE_MODULES = [name for name in MODULES if not name.endswith("_info")]
COLLECTION = "blockfleet.iscsi"


class Captured(Exception):
    """Carries what a module told AnsibleModule."""


def argument_spec(name, monkeypatch):
    module = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.modules.{name}")

    def capture(**keywords):
        raise Captured(keywords)

    monkeypatch.setattr(module, "AnsibleModule", capture)
    with pytest.raises(Captured) as caught:
        module.main()
    return caught.value.args[0]


@pytest.fixture(scope="session")
def documentation():
    """Return what ansible-doc makes of each module: documentation and return values, fragments laid in."""
    collections = next(path for path in sys.path if (Path(path) / "ansible_collections/blockfleet/iscsi").exists())
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("ansible-doc")),
            "--json",
            "--type=module",
            *(f"{COLLECTION}.{name}" for name in MODULES),
        ],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": collections},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return {name.rpartition(".")[2]: entry for name, entry in json.loads(done.stdout).items()}


def normalised(options, suboptions):
    """Reduce documented or specified options to what both sides must agree on."""
    result = {}
    for name, option in (options or {}).items():
        kind = option.get("type", "str")
        default = option.get("default")
        result[name] = {
            "type": kind,
            "elements": option.get("elements"),
            "required": bool(option.get("required", False)),
            "choices": list(option.get("choices") or []),
            "default": float(default) if kind == "float" and default is not None else default,
            "options": normalised(option.get(suboptions), suboptions),
        }
    return result


@pytest.mark.parametrize("name", MODULES)
def test_documented_options_are_those_that_the_module_takes(name, documentation, monkeypatch):
    doc = documentation[name]["doc"]
    spec = argument_spec(name, monkeypatch)["argument_spec"]
    assert normalised(doc["options"], "suboptions") == normalised(spec, "options")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_supports_check_mode_and_says_so(name, documentation, monkeypatch):
    doc = documentation[name]["doc"]
    assert argument_spec(name, monkeypatch)["supports_check_mode"] is True
    support = {attribute: doc["attributes"][attribute]["support"] for attribute in doc["attributes"]}
    diff = "N/A" if name.endswith("_info") else "full"
    assert support == {
        "check_mode": "full",
        "diff_mode": diff,
        "idempotent": "full",
        "action_group": "full",
        "platform": "full",
    }


def secrets_in(spec):
    for name, option in spec.items():
        yield from secrets_in(option.get("options") or {})
        if "secret" in name and option["type"] == "str":
            yield option


@pytest.mark.parametrize("name", MODULES)
def test_every_secret_is_kept_out_of_logs(name, monkeypatch):
    secrets = list(secrets_in(argument_spec(name, monkeypatch)["argument_spec"]))
    assert all(option.get("no_log") is True for option in secrets)
    assert bool(secrets) == (name in ("iscsi_chap", "iscsi_portal", "iscsi_config"))


def test_the_action_group_holds_every_module():
    runtime = yaml.safe_load((ROOT / "meta/runtime.yml").read_text())
    assert sorted(runtime["action_groups"]["iscsi"]) == MODULES


@pytest.mark.parametrize("name", STATE_MODULES)
def test_what_state_modules_return_in_common_is_documented_in_the_same_words(name, documentation):
    model = documentation["iscsi_chap"]["return"]
    assert {key: documentation[name]["return"][key] for key in model} == model


def test_options_of_the_fragments_are_those_of_the_shared_parts():
    for part in ("agent", "apply", "chap", "connections", "login", "relogin"):
        fragment = importlib.import_module(f"ansible_collections.{COLLECTION}.plugins.doc_fragments._{part}")
        documented = yaml.safe_load(fragment.ModuleDocFragment.DOCUMENTATION)["options"]
        assert set(documented) == set(getattr(_options, part)())
