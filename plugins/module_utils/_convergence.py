# Copyright (c) The Blockfleet authors
# BSD 2-Clause License (see LICENSES/BSD-2-Clause.txt or https://opensource.org/licenses/BSD-2-Clause)
# SPDX-License-Identifier: BSD-2-Clause

# Private to this collection: it may change or disappear in any release.
"""From one change to one module result: the agent plans or applies, and everything is taken from its answer.

Check mode and the real run differ in the route that is asked, in nothing else.  Of the module object only
``params``, ``check_mode``, ``no_log_values``, ``warn``, ``fail_json`` and ``exit_json`` are used.
"""

from __future__ import annotations

import contextlib
import typing as t

from ansible.module_utils.common.parameters import remove_values
from ansible_collections.blockfleet.iscsi.plugins.module_utils._agent_client import (
    AgentClient,
    AgentError,
    AgentRefused,
)

Completion = t.Callable[[AgentClient, t.Dict[str, t.Any]], t.Dict[str, t.Any]]
FieldNames = t.Sequence[t.Tuple[str, str]]

_DIFF_HEADER = "iSCSI storage of this host"


def client_of(module: t.Any) -> AgentClient:
    """Return the client for the agent that the module's options name."""
    return AgentClient(module.params["agent_socket"], module.params["agent_timeout"])


@contextlib.contextmanager
def agent_errors(
    module: t.Any, result: dict[str, t.Any] | None = None, field_names: FieldNames = ()
) -> t.Iterator[None]:
    """Turn an error of the agent into the module's failure, which carries ``result``."""
    try:
        yield
    except AgentError as error:
        _fail(module, error, {} if result is None else result, field_names)


def converge(
    module: t.Any,
    change: dict[str, t.Any],
    *,
    field_names: FieldNames = (),
    completion: Completion | None = None,
) -> t.NoReturn:
    """Have the agent carry out ``change`` (plan it, in check mode) and end the module.

    ``field_names`` maps beginnings of the agent's field paths to the module's option names, so that an error
    names what the user wrote.  ``completion`` may add results from further questions once the change is done.
    """
    client = client_of(module)
    change["options"] = {
        "allow_disruption": module.params["allow_disruption"],
        "wait_timeout": module.params["wait_timeout"],
        "relogin": module.params.get("relogin", "next_login"),
    }
    result: dict[str, t.Any] = {"changed": False}
    with agent_errors(module, result, field_names):
        plan = client.plan(change) if module.check_mode else client.apply(change)
        result.update(_result(plan))
        for warning in plan["warnings"]:
            warn(module, warning)
        _fail_if_refused(module, plan, result)
        _judge(module, plan, result)
        if completion is not None:
            result.update(completion(client, plan))
    module.exit_json(**result)


def _result(plan: dict[str, t.Any]) -> dict[str, t.Any]:
    result = {
        "changed": plan["changed"],
        "actions": [_shown(action) for action in plan["actions"]],
        "diff": {
            "before": plan["diff"].get("before", {}),
            "after": plan["diff"].get("after", {}),
            "before_header": _DIFF_HEADER,
            "after_header": _DIFF_HEADER,
        },
        "problems": plan["problems"],
    }
    for key in ("generation", "summary", "status", "waited"):
        if key in plan:
            result[key] = plan[key]
    return result


def _shown(action: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return an action without its states, which the diff has."""
    return {key: value for key, value in action.items() if key not in ("before", "after")}


def _fail_if_refused(module: t.Any, plan: dict[str, t.Any], result: dict[str, t.Any]) -> None:
    """Fail where the plan holds what the request does not permit; the real run fails on it just so."""
    refusals = [f"{action.get('text')}: {action['refused']}" for action in plan["actions"] if action.get("refused")]
    if refusals and not plan.get("applied"):
        result["changed"] = False
        module.fail_json(
            msg=f"not permitted without allow_disruption: {'; '.join(refusals)}",
            **result,
        )


def _judge(module: t.Any, plan: dict[str, t.Any], result: dict[str, t.Any]) -> None:
    """Fail where the host did not follow, warn where it did in part."""
    texts = [problem_text(problem) for problem in plan["problems"]]
    if plan.get("status") == "not_verified":
        limit = module.params["wait_timeout"]
        early = plan.get("waited", limit) < limit
        ended = ", and waiting longer would not help" if early else f" within {limit:g} s"
        module.fail_json(
            msg=f"the host did not reach the declared state{ended}: "
            + ("; ".join(texts) or "the agent gave no reason"),
            **result,
        )
    for text in texts:
        warn(module, text)


def warn(module: t.Any, text: str) -> None:
    """Warn the user; unlike results, warnings are not censored by AnsibleModule, so that it is done here."""
    module.warn(remove_values(text, module.no_log_values))


def problem_text(problem: t.Any) -> str:
    """Return a problem of the agent as one line."""
    if not isinstance(problem, dict):
        return str(problem)
    name = problem.get("name")
    message = problem.get("message") or "unknown problem"
    return f"{message} ({name})" if name else str(message)


def _fail(module: t.Any, error: AgentError, result: dict[str, t.Any], field_names: FieldNames) -> t.NoReturn:
    details = error.details()
    message = str(error)
    if isinstance(error, AgentRefused) and error.field:
        option = details["option"] = option_name(error.field, field_names)
        text = message[len(error.field) + 1 :].strip() if message.startswith(f"{error.field}:") else message
        message = f"{option}: {text}"
    if details:
        result["error"] = details
    module.fail_json(msg=message, **result)


def option_name(field: str, field_names: FieldNames) -> str:
    """Translate a field path of the agent (``targets[0].chap.secret``) to the option that the user wrote."""
    path = field[len("document.") :] if field.startswith("document.") else field
    for prefix, option in field_names:
        if path.startswith(prefix):
            return (option + path[len(prefix) :]).strip(".") or path
    return path
