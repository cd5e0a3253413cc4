"""Untrusted YAML: no environment variables, no stack overflow, no exponential expansion."""

import os

import pytest

from reasonbrain.config.loading import load_config
from reasonbrain.config.yaml_file import read_yaml
from reasonbrain.errors import UserError


def read(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return read_yaml(tmp_path / "c.yaml", "config file")


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "x/${oc.env:HOME,y}", "${oc.decode:${oc.env:HOME}}", "${${a}:HOME}", "${env:HOME}"]
)
def test_nothing_is_resolved_from_the_environment(tmp_path, value):
    with pytest.raises(UserError, match="is not allowed; only"):
        read(tmp_path, f'data: {{validation: "{value}"}}')


def test_package_and_key_references_are_resolved(tmp_path):
    raw = read(tmp_path, "a: {b: '${package:tiny}', c: ['${a.b}', '${a.c[0]}']}")
    assert os.path.isdir(raw.a.c[1])


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 100_000, "- " * 100_000 + "x", "a: " + "{a: " * 1000 + "1" + "}" * 1000]
)
def test_deep_nesting_is_a_one_line_error(tmp_path, text):
    with pytest.raises(UserError, match="nested more than 50 levels deep"):
        read(tmp_path, text)


def test_aliases_do_not_explode(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]" for i in range(1, 10)]
    with pytest.raises(UserError, match="more than 100000 values"):
        read(tmp_path, "\n".join(lines))
    assert read(tmp_path, "a: &a [1, 2]\nb: *a").b == [1, 2]


def test_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    for name, said in (("c.yaml", "is not a regular file"), ("none.yaml", "does not exist"), (".", "not a regular")):
        with pytest.raises(UserError, match=said):
            read_yaml(tmp_path / name, "config file")
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UserError, match="is not readable YAML"):
        read_yaml(tmp_path / "b.yaml", "config file")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x={1", "ParserError"),
        ("x=" + "[" * 100_000, "nested more than 50 levels"),
        ("x.y=\ud800", "override"),
    ],
)
def test_an_override_that_is_not_yaml(text, said):
    with pytest.raises(UserError, match=said) as error:
        load_config("tiny", [text])
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", ["0100", "-0_10", "12:30", "1:30.5"])
def test_a_number_in_base_8_or_60_is_refused_unless_it_is_quoted(value, tmp_path):
    with pytest.raises(UserError, match=f"YAML reads {value} as "):
        read(tmp_path, f"a: [1, {value}]")
    assert read(tmp_path, f"a: [007, 0, 0x10, '{value}']").a == [7, 0, 16, value]
