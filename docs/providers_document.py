"""Prints docs/providers.md: `python -m docs.providers_document`.

The chapters are in providers.template.md. A line `<!-- name -->` there stands for a table that is made from the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from services.agent.providers.parameters import FAMILIES, Family
from services.common.providers.refusals import RULES, Rule

TEMPLATE = Path(__file__).parent / "providers.template.md"
PLACE = re.compile(r"^<!-- ([a-z]+) -->$", re.MULTILINE)


def refusals() -> str:
    """The table of refusals, in the order in which its rows are tried."""
    head = (
        "| what the provider says | status | its codes, or words like | code | tried again |\n|---|---|---|---|---|\n"
    )
    return head + "\n".join(map(_row, RULES))


def _row(rule: Rule) -> str:
    found = [f"`{code}`" for code in sorted(rule.codes)[:6]]
    found += ["an HTML page"] if rule.html else []
    found += [f"“{words}”" for words in rule.examples]
    retryable = rule.error.retryable if rule.retryable is None else rule.retryable
    code = rule.error.reason.lower()
    outcome = rule.error().outcome
    shown = f"`{code}`" if outcome == code else f"`{code}`; `{outcome}` in logs and metrics"
    cells = (rule.meaning, _statuses(rule.statuses), ", ".join(found), shown, "yes" if retryable else "no")
    return f"| {' | '.join(cells)} |"


def _statuses(statuses: Collection[int]) -> str:
    if not statuses:
        return "any"
    return f"{min(statuses)}–{max(statuses)}" if len(statuses) > 5 else ", ".join(map(str, statuses))


def families() -> str:
    """The models that are known not to take a parameter."""
    head = "| provider | models | left out |\n|---|---|---|\n"
    return head + "\n".join(map(_family, FAMILIES))


def _family(family: Family) -> str:
    left_out = ", ".join(f"`{name}`" for name in sorted(family.refused))
    if family.exclusive:
        kept, dropped = family.exclusive
        left_out += f"`{dropped}`, if `{kept}` is set as well"
    return f"| {family.provider} | {family.name} | {left_out} |"


TABLES: dict[str, Callable[[], str]] = {"refusals": refusals, "families": families}


def document() -> str:
    """The whole page."""
    return PLACE.sub(lambda place: TABLES[place[1]](), TEMPLATE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.stdout.write(document())
