import os
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from engines.bundle import write_bundle
from engines.errors import BundleError
from station.cli import app
from tests.support.bundles import make_bundle, make_description, make_selftest, toy_scorer


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "toy", 16)


def station_engine(*arguments):
    return CliRunner().invoke(app, ["engine", *map(str, arguments)], env={"COLUMNS": "200"})


def test_list_without_a_bundle_shows_the_back_ends():
    result = station_engine("list")
    assert result.exit_code == 0
    (line,) = [line for line in result.output.splitlines() if line.startswith("onnxruntime")]
    assert "takes it" in line
    assert "bundle" not in result.output


def test_list_tells_what_the_bundle_is(bundle):
    result = station_engine("list", "--bundle", bundle.path)
    assert result.exit_code == 0
    for fact in (str(bundle.path), "toy, made 2024-01-01 00:00 UTC", bundle.digest, "16 x 16 pixels every 16"):
        assert fact in result.output


def test_verify_has_one_line_a_file_and_one_for_the_self_test(bundle):
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("ok ") for line in lines)
    assert f"ok manifest.json: schema 1, sha256 {bundle.digest}" in lines
    for name, sha256 in bundle.manifest.files.items():
        assert f"ok {name}: {len(bundle.files[name]):,} bytes, sha256 {sha256}" in lines
    assert "self-test on onnxruntime" in lines[-1]


def test_verify_fails_on_an_altered_bundle(bundle):
    os.truncate(bundle.path / "scorer.onnx", 100)
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert isinstance(result.exception, BundleError)  # station.cli.main makes one line of it


def test_verify_fails_on_an_engine_that_gives_other_scores(tmp_path):
    # A sound bundle, but the stored outputs are those of another grey level.
    good = make_bundle(tmp_path / "good", 16)
    wrong = replace(make_selftest(16), expected=make_selftest(16, grey=90).expected)
    description = make_description(good.manifest.preprocessing)
    bundle = write_bundle(tmp_path / "wrong", description, toy_scorer(16).SerializeToString(), wrong, "# Card")
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert "failed onnxruntime" in result.output.splitlines()[-1]
    assert "differs by" in result.output.splitlines()[-1]


def test_verify_names_a_graph_that_cannot_be_loaded(tmp_path):
    model = toy_scorer(16)
    model.graph.node[0].op_type = "NoSuchOperator"
    good = make_bundle(tmp_path / "good", 16)
    description = make_description(good.manifest.preprocessing)
    bundle = write_bundle(tmp_path / "odd", description, model.SerializeToString(), make_selftest(16), "# Card")
    result = station_engine("verify", "--bundle", bundle.path)
    assert result.exit_code == 1
    assert "refuses the graph" in result.output


@pytest.mark.parametrize("arguments", [("--help",), ("list", "--help"), ("verify", "--help")])
def test_help(arguments):
    result = station_engine(*arguments)
    assert result.exit_code == 0
    assert "Usage" in result.output
