"""What README says of the packaged detection is what it does."""

from __future__ import annotations

from tests.unit.classifiers.risk_table import BEGIN, END, README, RISKS, found, table, texts


async def test_the_readmes_table_is_what_is_measured() -> None:
    """The table is made of the labelled texts by the code that runs; ``python -m`` of its module writes it anew."""
    labelled = texts()
    told = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert told == table(labelled, await found(labelled)).strip()


async def test_few_are_missed_and_hardly_any_is_raised_wrongly() -> None:
    """Of each risk's texts at least four in five are found, and of the harmless ones at most one in a hundred."""
    labelled = texts()
    raised = await found(labelled)
    for risk in RISKS:
        true = [risk in risks for one, risks in zip(labelled, raised, strict=True) if risk in one.risks]
        assert sum(true) >= 0.8 * len(true), risk
    harmless = [bool(risks) for one, risks in zip(labelled, raised, strict=True) if not one.risks]
    assert sum(harmless) <= 0.01 * len(harmless)


def test_the_texts_are_many_and_each_is_another() -> None:
    """At least 200 harmless texts and 100 others, none twice, and of each risk at least 20."""
    labelled = texts()
    assert len({one.text.lower() for one in labelled}) == len(labelled)
    assert sum(not one.risks for one in labelled) >= 200
    assert sum(bool(one.risks) for one in labelled) >= 100
    assert all(sum(risk in one.risks for one in labelled) >= 20 for risk in RISKS)
