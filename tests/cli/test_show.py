"""`reasonbrain modules SLOT:NAME` and `reasonbrain config`."""

import pytest
from click.testing import CliRunner

from reasonbrain.cli import main
from reasonbrain.config.loading import load_config


def call(*args):
    return CliRunner().invoke(main, list(args))


def test_a_plugins_parameters_have_type_default_and_meaning():
    lines = call("modules", "cme:hybrid").stdout.splitlines()
    assert lines[0] == "cme:hybrid  reasonbrain.modules.cme.hybrid.HybridEnhancer"
    assert lines[lines.index("blocks: int = 5") + 1].startswith("    ")
    assert "queries: int = 77" in lines and "heads: int = 8" in lines
    assert not [line for line in lines if line.startswith("width")]


def test_null_and_nested_defaults_are_written_as_on_the_command_line():
    text = call("modules", "encoders:clip").stdout
    assert "pretrained: str | None = null" in text
    assert "architecture: dict[str, Any] | None = null" in text
    assert "layers: list[int] = [-2, -8, -14]" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cme", ["'cme'", "SLOT:NAME", "frce.region"]),
        ("cmee:hybrid", ["'cmee:hybrid'", "frce.region"]),
        ("cme:hybrit", ["hybrit", "hybrid"]),
        ("cme:", ["hybrid"]),
    ],
)
def test_an_unknown_plugin_is_one_line_with_the_choices(name, said):
    result = call("modules", name)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(s in result.stderr for s in said), result.stderr


def test_config_prints_what_a_command_would_use(tmp_path):
    result = call("config", "tiny", "model.cme=null", "train.lr=2e-4")
    assert result.exit_code == 0 and result.stderr == ""
    file = tmp_path / "printed.yaml"
    file.write_text(result.stdout)
    assert load_config(str(file)) == load_config("tiny", ["model.cme=null", "train.lr=2e-4"])
    assert "${" not in result.stdout


@pytest.mark.parametrize("args", [("teeny",), ("tiny", "edit.stepz=3"), ("tiny", "edit.steps")])
def test_a_wrong_configuration_is_one_line(args):
    result = call("config", *args)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
