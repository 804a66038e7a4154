"""Errors of the policy file name file, line, key, what was found, and the nearest right name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tracerouter.errors import ConfigError
from tracerouter.policy import Policy, PolicyFile, load
from tracerouter.policy.file import Written, read
from tracerouter.policy.model import Normal, ValidatorOf
from tracerouter.types import Task, Wanted
from tracerouter.validators import Checks

if TYPE_CHECKING:
    from pathlib import Path


def error_of(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as raised:
        load(path)
    return str(raised.value).replace(str(path), "policy.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ladder: []", "policy.yaml:1: ladder: found []; list should have at least 1 item"),
        ("name: x", "policy.yaml:1: ladder: is missing"),
        ("ladder: [a, a]", "an alias stands in it twice"),
        (
            "ladder: [a]\nmin_confidense: 1",
            "policy.yaml:2: min_confidense: is not a key here (did you mean 'min_confidence'?)",
        ),
        ("ladder: [a]\nmin_confidence: 1.5", "policy.yaml:2: min_confidence: found 1.5; input should be less than"),
        ("ladder: [a]\nmax_choices: 129", "policy.yaml:2: max_choices: found 129; input should be less than or equal"),
        ("ladder: [a]\nladders: {auto: [a]}", "policy.yaml:2: ladders.auto"),
        ("ladder: [a]\nladders: {auto: [a]}", "a ladder can't be called auto, which is `ladder` itself"),
        ("ladder: [a]\nladders: {b: []}", "policy.yaml:2: ladders.b: found []; list should have at least 1 item"),
        ("ladder: [a]\nmax_output_tokens: -1", "policy.yaml:2: max_output_tokens: found -1"),
        ("ladder: [a]\ntasks:\n  x: {max_input_tokens: -5}", "policy.yaml:3: tasks.x.max_input_tokens: found -5"),
        ("ladder: [a]\ncache: {ttl: soon}", "policy.yaml:2: cache.ttl: found 'soon', but a duration such as"),
        (
            "ladder: [a]\ntasks:\n  x:\n    cache: {ttl: soon}",
            "policy.yaml:4: tasks.x.cache.ttl: found 'soon', but a dur",
        ),
        (
            "ladder: [a]\nfreshness: {dayly: 1d}\ncache: {ttl: daily}",
            "policy.yaml:3: cache.ttl: found 'daily', but a duration such as 10m, 1h or 7d, or a name of `fres",
        ),
        (
            "ladder: [a]\nfreshness: {daily: soon}",
            "policy.yaml:2: freshness.daily: found 'soon', but a duration such as",
        ),
        (
            "ladder: [a]\nfreshness: {max-age: 1d}",
            "policy.yaml:2: freshness.max-age: found 'max-age'; string should match",
        ),
        ("ladder: [a]\nfreshness: [daily]", "policy.yaml:2: freshness: found ['daily']"),
        (
            "ladder: [a]\ncache: {normalise: off}",
            "policy.yaml:2: cache.normalise: is not a key here (did you mean 'norm",
        ),
        (
            "ladder: [a]\ncache:\n  normalize:\n    noise: ['a', '(']",
            "policy.yaml:4: cache.normalize.noise.1: found '('",
        ),
        ("ladder: [a]\ncache:\n  normalize: {synonyms: [a]}", "policy.yaml:3: cache.normalize.synonyms: found ['a']"),
        (
            "ladder: [a]\ncache:\n  normalize:\n    synonyms:\n      hue: Colour\n      colour: color",
            "policy.yaml:5: cache.normalize.synonyms.hue: 'Colour' stands for another word itself",
        ),
        (
            "ladder: [a]\nvalidate:\n- empty\n- {lenght: {max: 1}}",
            "policy.yaml:4: validate.1.lenght: is not a key here (d",
        ),
        (
            "ladder: [a]\nvalidate: [{length: {}}]",
            "policy.yaml:2: validate.0.length: found an empty mapping; needs `min`,",
        ),
        ("ladder: [a]\nvalidate: [{length: {min: 3, max: 2}}]", "no answer has at least 3 and at most 2"),
        (
            "ladder: [a]\nvalidate: [{length: {max: 2, unit: lines}}]",
            "validate.0.length.unit: found 'lines'; known are cha",
        ),
        (
            "ladder: [a]\nvalidate: [{matches: '(open'}]",
            "validate.0.matches: found '(open', which is no regular expression",
        ),
        (
            "ladder: [a]\nvalidate: [{matches: a, forbids: b}]",
            "validate.0: found a mapping of matches, forbids; needs one of",
        ),
        (
            "ladder: [a]\nvalidate: [{}]",
            "validate.0: found an empty mapping; needs one of pydantic, language, length, m",
        ),
        ("ladder: [a]\nvalidate: [{language: []}]", "policy.yaml:2: validate.0.language: found []"),
        (
            "ladder: [a]\nvalidate: [{pydantic: Model}]",
            "policy.yaml:2: validate.0.pydantic: found 'Model'; string should",
        ),
        ("ladder: [a]\nvalidate: [3]", "policy.yaml:2: validate.0: found 3, but a mapping"),
        (
            "ladder: [a]\ntasks:\n  x:\n    validate: [{forbids: '['}]",
            "policy.yaml:4: tasks.x.validate.0.forbids: found '['",
        ),
        ("ladder: [a]\nrisks: {legl: {}}", "policy.yaml:2: risks.legl: found 'legl'"),
        ("ladder: [a]\ntasks: [x]", "policy.yaml:2: tasks: found ['x']"),
        ("ladder: [a]\ntasks: {x: {prompt: gone.md}}", "gone.md: can't be read"),
        ("ladder: [a]\nladder: [b]", "policy.yaml:2: 'ladder' stands here a second time"),
        ("ladder: [a", "policy.yaml:1: is no YAML"),
        ("- a", "policy.yaml:1: the file: found ['a'], but a mapping"),
        ("ladder: [a]\n1: x", "policy.yaml:2: the key 1 must be a string"),
        (b"ladder: [\xff]", "policy.yaml: is not UTF-8 (byte 9)"),
        ("a: " * 5000, "is no YAML"),
        (
            "ladder: [a]\nrisks:\n  legal: {review: drafts}",
            "policy.yaml:3: risks.legal.review: found 'drafts' (did you mean 'draft'?); known are draft, after_ladder",
        ),
        ("ladder: [a]\ntasks: {x: {review: always}}", "tasks.x.review: found 'always'; known are draft, after_ladder"),
        ("ladder: [a]\nreview: draft", "policy.yaml:2: review: found 'draft', but a mapping of keys and values"),
        ("ladder: [a]\nreview:\n  low_confidence: true", "review.low_confidence: found True; known are draft, after"),
        ("ladder: [a]\nreview: {lowconfidence: draft}", "lowconfidence: is not a key here (did you mean 'low_confi"),
        ("ladder: [a]\nreview: {expires: soon}", "review.expires: found 'soon', but a duration such as"),
        ("ladder: [a]\nreview:\n  expires: 2d\n  history: 3d", "policy.yaml:4: review.history: should be at least t"),
        ("[" * 5000, "is no YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    """A wrong file ends in a sentence that says where and what, whatever is wrong with it."""
    assert said in error_of(tmp_path, text)


@pytest.mark.parametrize("key", ["windows", "storm"])
def test_a_key_that_is_not_enforced_is_an_error(tmp_path: Path, key: str) -> None:
    """What a later version enforces is an error now, not a silence."""
    assert f"{key}: is known, but this version does not enforce it yet" in error_of(tmp_path, f"ladder: [a]\n{key}: []")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    """One run of ``policy check`` shows every wrong value, each on a line of its own."""
    text = "ladder: []\nversion: 0\nmin_confidence: 2"
    assert [line.split(":")[1] for line in error_of(tmp_path, text).splitlines()] == ["2", "1", "3"]


@pytest.mark.parametrize(
    ("written", "ttl"), [("never", None), ("off", None), ("no", None), ("{ttl: 90}", 90), ("{ttl: 1h}", 3600)]
)
def test_cache_rules(tmp_path: Path, written: str, ttl: float | None) -> None:
    """``never`` and its likely spellings turn the cache off; a duration may have a unit."""
    (tmp_path / "policy.yaml").write_text(f"ladder: [a]\ncache: {written}")
    assert load(tmp_path / "policy.yaml").default.rules.cache_ttl == ttl


def of(**written: object) -> Policy:
    return Policy.of(PolicyFile.model_validate({"ladder": ["a"], **written}))


def test_freshness_has_names() -> None:
    """A name of `freshness` stands for its duration, in the policy's cache rule and in a task's."""
    names = {"static": "30d", "daily": "1d", "volatile": 0}
    policy = of(
        freshness=names,
        cache={"ttl": "daily"},
        tasks={
            "faq": {"cache": {"ttl": "static"}},
            "news": {"cache": {"ttl": "volatile"}},
            "odd": {"cache": {"ttl": 5}},
        },
    )
    assert policy.freshness == {"static": 2_592_000, "daily": 86_400, "volatile": 0}
    kept = {label: policy.task(label).rules.cache_ttl for label in ("faq", "news", "odd", "other")}
    assert kept == {"faq": 2_592_000, "news": 0, "odd": 5, "other": 86_400}


@pytest.mark.parametrize(
    ("written", "normal"), [({}, Normal()), ({"normalize": "off"}, None), ({"normalize": False}, None)]
)
def test_normalisation_is_on_and_can_be_turned_off(written: dict[str, object], normal: Normal | None) -> None:
    """The built-in normalisation of cache keys is on unless the policy says ``off``."""
    assert of(cache=written).normal == normal


def test_another_normalisation_empties_the_cache() -> None:
    """What was taken for one question under other synonyms or noise is not found any more."""
    asked: list[dict[str, object]] = [{}, {"synonyms": {"a": "b"}}, {"synonyms": {"a": "c"}}, {"noise": ["^hi"]}]
    assert len({of(cache={"normalize": one}).salt for one in asked}) == 4


def test_validators_with_arguments_are_read() -> None:
    """Each kind of entry is read, for all tasks or for one, and another argument empties the cache."""
    entries = [
        "empty",
        {"pydantic": "my.module:Model"},
        {"language": "en"},
        {"language": ["en", "de"]},
        {"length": {"max": 2000, "unit": "words"}},
        {"matches": r"^\d+$"},
        {"forbids": "(?i)as an ai"},
        {"citations": r"\(source (\d+)\)"},
        "arithmetic",
    ]
    policy = of(validate=["empty"], tasks={"x": {"validate": entries}})
    assert policy.task("x").rules.validate == (
        "empty",
        Wanted("pydantic", ("my.module:Model",)),
        Wanted("language", ("en",)),
        Wanted("language", ("en", "de")),
        Wanted("length", (None, 2000, "words")),
        Wanted("matches", (r"^\d+$",)),
        Wanted("forbids", ("(?i)as an ai",)),
        Wanted("citations", (r"\(source (\d+)\)",)),
        "arithmetic",
    )
    assert policy.validators == set(policy.task("x").rules.validate)
    assert len({of(validate=[{"length": {"max": size}}]).salt for size in (1, 2)}) == 2


def test_every_kind_with_arguments_can_be_made() -> None:
    """What the file has a key for is what the validators know, each by its own name."""
    given = {
        "pydantic": "tracerouter.policy:PolicyFile", "language": "en", "length": {"max": 1}, "matches": "a",
        "forbids": "a", "citations": "a",
    }  # fmt: skip
    assert given.keys() == ValidatorOf.model_fields.keys()
    for name, argument in given.items():
        policy = of(validate=[{name: argument}])
        (made,) = Checks(policy.validators).of(Task.chat("x"), policy.default.rules)
        assert made.name == name


def test_prompts_and_schemas_are_read_beside_the_policy(tmp_path: Path) -> None:
    """The files that a task names are found relative to the policy file, and broken ones are named."""
    (tmp_path / "p.md").write_text("Be brief.\n")
    (tmp_path / "s.json").write_text('{"type": "object"}')
    (tmp_path / "policy.yaml").write_text("ladder: [a]\ntasks: {x: {prompt: p.md, schema: s.json}}")
    rules = load(tmp_path / "policy.yaml").task("x").rules
    assert (rules.prompt, rules.schema) == ("Be brief.", {"type": "object"})
    (tmp_path / "s.json").write_text('{"type": ')
    with pytest.raises(ConfigError, match=r"s\.json:1: is no JSON"):
        load(tmp_path / "policy.yaml")


def test_an_unknown_alias_is_named_with_its_place() -> None:
    """An alias that no model has is an error that names where it stands and the nearest one."""
    policy = Policy.of(PolicyFile.model_validate({"ladder": ["small", "lagre"]}), source="policy.yaml")
    with pytest.raises(ConfigError, match=r"policy\.yaml: ladder: no model is called 'lagre' \(did you mean 'large'"):
        policy.check_aliases({"small", "large"})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("tasks: {x: {start: smal}}", "tasks.x.start: 'smal' stands on no ladder (did you mean 'small'?)"),
        (
            "tiers: {t: {ladder: [small, small]}}",
            "tiers.t.ladder: found ['small', 'small']; an alias stands in it twice",
        ),
        ("tasks: {x: {match: ['(open']}}", "tasks.x.match.0: found '(open', which is no regular expression"),
        ("risks: {legl: {}}", "risks.legl: found 'legl' (did you mean 'legal'?)"),
        (
            "tasks: {review: {}}\nrisks: {legal: {tasks: [reviw]}}",
            "policy.yaml:3: risks: legal.tasks: 'reviw' is none of the tasks (did you mean 'review'?)",
        ),
        ("risks: {legal: {detect: perhaps}}", "risks.legal.detect: found 'perhaps'"),
    ],
)
def test_what_a_policy_names_must_be_there(tmp_path: Path, more: str, said: str) -> None:
    """Starts, ladders, patterns and risks are checked with the file, not when the first request comes."""
    assert said in error_of(tmp_path, f"ladder: [small]\n{more}")


def test_a_threshold_keeps_the_cache_and_a_prompt_empties_it(tmp_path: Path) -> None:
    """The salt of cache keys changes with what changes answers, and with nothing else."""
    (tmp_path / "p.md").write_text("Be brief.")

    def salt(**written: object) -> str:
        return Policy.of(PolicyFile.model_validate({"ladder": ["a"], **written}), tmp_path).salt

    assert salt() == salt(min_confidence=0.1) == salt(version=7)
    assert len({salt(), salt(tasks={"x": {"prompt": "p.md"}}), salt(max_output_tokens=5), salt(ladder=["b"])}) == 4


class Pair(Written):
    first: str
    second: int = 0


def test_variables_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``${NAME}`` is replaced where the deployment file allows it; an unset one is named with its line."""
    path = tmp_path / "f.yaml"
    path.write_text("second: 1\nfirst: x-${TR_TEST_A}")
    monkeypatch.setenv("TR_TEST_A", "value")
    assert read(path, Pair, variables=True).first == "x-value"
    monkeypatch.delenv("TR_TEST_A")
    with pytest.raises(ConfigError, match=r"f\.yaml:2: the variable TR_TEST_A is not set"):
        read(path, Pair, variables=True)
    assert read(path, Pair).first == "x-${TR_TEST_A}"


def test_a_schema_that_is_none_is_the_policys_mistake(tmp_path: Path) -> None:
    """A wrong schema file is found when the policy is checked, not blamed on the first caller."""
    (tmp_path / "s.json").write_text('{"type": "objec"}')
    (tmp_path / "policy.yaml").write_text("ladder: [a]\ntasks: {x: {schema: s.json}}")
    with pytest.raises(ConfigError, match=r"`tasks\.x\.schema` is no JSON Schema"):
        Checks((), load(tmp_path / "policy.yaml").schemas)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{per: tenant, limit: 5 EUR/month}", "quotas.0.limit: found '5 EUR/month', but a limit such as 5 USD/month"),
        ("{per: tenant, limit: 5.5 requests/day}", "quotas.0.limit: found '5.5 requests/day'"),
        ("{per: tenant, limit: 5 USD/week}", "quotas.0.limit: found '5 USD/week'"),
        ("{per: all, limit: 5 USD/day}", "quotas.0.per: "),
        ("{limit: 5 USD/day}", "quotas.0.per: "),
        ("{per: tenant, limit: 5 USD/day, role: expensiv}", "quotas.0.role: "),
        ("{per: tenant, limit: 5 USD/day, then: [refuse, stale]}", "nothing comes after refuse"),
        ("{per: tenant, limit: 5 USD/day, then: [stale, stale]}", "an action stands in it twice"),
        ("{per: tenant, limit: 5 USD/day, then: []}", "quotas.0.then: "),
        ("{per: tenant, limit: 5 USD/day, then: [downgrad]}", "quotas.0.then.0: "),
        (
            "{per: tenant, limit: 5 USD/day, tier: fre}",
            "tier: 'fre' is none of the policy's `tiers` (did you mean 'free'?)",
        ),
        (
            "{per: tenant, limit: 5 USD/day}\n  - {per: tenant, limit: 5 USD/day}",
            "give one of them a `name` of its own",
        ),
    ],
)
def test_a_quota_that_is_wrong_says_how(tmp_path: Path, written: str, told: str) -> None:
    """The entry, the field, what was found, and what belongs there."""
    assert told in error_of(tmp_path, f"ladder: [a]\ntiers: {{free: {{}}}}\nquotas:\n  - {written}\n")


def test_a_time_zone_that_is_none_says_so(tmp_path: Path) -> None:
    """With the nearest right name."""
    told = error_of(tmp_path, "ladder: [a]\ntimezone: Europe/Berlim\n")
    assert "timezone: found 'Europe/Berlim', which is no time zone (did you mean 'Europe/Berlin'?)" in told


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{limit: 60}", "rates.0.limit: found 60, but a rate such as 60 requests/minute"),
        ("{limit: 60 requests/day}", "rates.0.limit: found '60 requests/day', but a rate such as"),
        ("{limit: 0 requests/minute}", "rates.0.limit: found '0 requests/minute'"),
        ("{limit: 1 USD/minute}", "rates.0.limit: found '1 USD/minute'"),
        ("{limit: 1 requests/minute, per: team}", "rates.0.per: "),
        ("{limit: 1 requests/minute, then: [queue]}", "rates.0.then: is not a key here"),
        (
            "{limit: 1 requests/minute, tier: fre}",
            "rates.0.tier: 'fre' is none of the policy's `tiers` (did you mean 'free'?)",
        ),
        (
            "{limit: 1 requests/minute}\n  - {limit: 1 requests/minute}",
            "rates.1: another one is called 'key 1 requests/minute', too",
        ),
    ],
)
def test_a_rate_that_is_wrong_says_how(tmp_path: Path, written: str, told: str) -> None:
    """The place, what was found, and what belongs there."""
    assert told in error_of(tmp_path, f"ladder: [a]\ntiers: {{free: {{}}}}\nrates:\n  - {written}\n")


def test_rates_and_quotas_share_their_names(tmp_path: Path) -> None:
    """Metrics and answers tell a limit by its name alone."""
    written = (
        "ladder: [a]\nquotas: [{name: x, per: user, limit: 1 USD/day}]\nrates: [{name: x, limit: 1 requests/second}]"
    )
    assert "rates.0: another one is called 'x', too" in error_of(tmp_path, written)
