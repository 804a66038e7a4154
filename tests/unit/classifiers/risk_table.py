"""README's table of what the packaged detection finds, and what it takes for what it is not.

``python -m tests.unit.classifiers.risk_table`` writes it anew.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, NamedTuple

from tracerouter.classifiers import Chain, RiskClassifier
from tracerouter.policy import PolicyFile
from tracerouter.types import Task

TEXTS: Final = Path(__file__).with_name("risks.tsv")
README: Final = Path(__file__).parents[3] / "README.md"
BEGIN: Final = "<!-- made by python -m tests.unit.classifiers.risk_table -->\n"
END: Final = "<!-- end -->"
RISKS: Final = ("pii", "legal", "financial", "medical", "security")


class Text(NamedTuple):
    """One labelled text."""

    risks: frozenset[str]
    text: str


def texts() -> list[Text]:
    """Read the labelled texts."""
    lines = [line.split("\t") for line in TEXTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Text(frozenset() if risks == "-" else frozenset(risks.split(",")), text) for risks, text in lines]


async def found(labelled: list[Text]) -> list[frozenset[str]]:
    """Return the risks that the packaged detection raises, text by text."""
    policy = PolicyFile.model_validate({"ladder": ["any"], "risks": {risk: {} for risk in RISKS}})
    finder = RiskClassifier(Chain([]), {str(name): rule for name, rule in policy.risks.items()})
    return [(await finder.classify(Task.chat(one.text))).risks for one in labelled]


def table(labelled: list[Text], raised: list[frozenset[str]]) -> str:
    """Write what was found as a table in Markdown."""
    rows = ["| risk | found, of the texts that have it | raised, of those that do not |", "|---|---|---|"]
    for risk in RISKS:
        true = [risk in risks for one, risks in zip(labelled, raised, strict=True) if risk in one.risks]
        false = [risk in risks for one, risks in zip(labelled, raised, strict=True) if risk not in one.risks]
        rows.append(f"| `{risk}` | {sum(true)} of {len(true)} | {sum(false)} of {len(false)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write the table into README."""
    labelled = texts()
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    made = table(labelled, asyncio.run(found(labelled)))
    README.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
