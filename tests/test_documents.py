"""JSON and YAML that somebody else wrote: what is too deep, too large or says a thing twice is refused, all else read."""

import pytest

from workbench.documents import DEPTH, YAML_BYTES, parse_json, read_json, read_yaml

DEEP = "[" * (DEPTH + 2) + "]" * (DEPTH + 2)
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested more than 64 deep"),
        ("[" * 200_000, "nested more than 64 deep|Expecting value"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ("9" * 5000, "4300"),
        ("{", "Expecting property name"),
        (b'"\xff"', "can't decode byte 0xff"),
    ],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"a: {DEEP}", "nested more than 64 deep"),
        ("[" * 2000, "nested more than 64 deep"),
        ("n: 3\nn: 4\n", "'n' is there twice"),
        ("tasks: [{name: ioi, name: agreement}]", "'name' is there twice"),
        (LAUGHS, "more than 100000 entries"),
        ("a: &a [*a]", "more than 100000 entries|recursive"),
        ("n: " + "9" * 5000, "4300"),
        ("made: 2001-99-99", "month must be in"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: [", "expected the node content"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, reason):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_yaml(tmp_path / "a.yaml")


def test_what_is_within_the_bounds_is_read_as_always(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "base: &base {n: 3, seed: 0}\nrun: {<<: *base, n: 4}\nlist: [*base, *base]\n"
    )
    base = {"n": 3, "seed": 0}
    assert read_yaml(tmp_path / "a.yaml") == {"base": base, "run": {"n": 4, "seed": 0}, "list": [base, base]}
    (tmp_path / "a.json").write_text('{"a": [1, {"b": [null, "é", 1e400]}]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, {"b": [None, "é", float("inf")]}]}
    assert parse_json("[" * DEPTH + "]" * DEPTH) is not None


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(YAML_BYTES + 1)
    with pytest.raises(OSError, match="it has more than 1048576 bytes"):
        read_yaml(tmp_path / "a.yaml")
