"""Help and the commands that look at a workspace start without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

from edgecil_cli import _options
from edgecil_cli.app import app

COMMANDS = sorted(get_command(app).commands)
SCRIPT = """
import sys
from edgecil_cli.app import run
code = run(sys.argv[1:])
heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "sklearn"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else code)
"""


@pytest.fixture(scope="session")
def light(environment):
    def call(*arguments, **env):
        return subprocess.run(
            [sys.executable, "-c", SCRIPT, *map(str, arguments)],
            env=environment(**env), capture_output=True, text=True, check=False,
        )  # fmt: skip

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["methods"],
        ["targets"],
        ["targets", "rpi4"],
        ["status"],
        ["history"],
        ["learn", "-h"],
    ],
)
def test_no_torch(light, known, arguments):
    place = ["--workspace", known] if arguments[0] in ("status", "history") else []
    done = light(*arguments, *place)
    assert done.returncode == 0 and done.stderr.find("imported") < 0, done.stderr
    assert done.stdout


def test_rollback_needs_no_torch(light, own):
    done = light("rollback", "--workspace", own)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("width", [80, 40])
def test_help_has_one_line_examples_and_the_common_options(ask, monkeypatch, name, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERMINAL_WIDTH", str(width))
    answer = ask(name, "--help")
    assert answer.code == 0 and answer.err == ""
    assert "Examples:" in answer.out and f"edgecil {name}" in answer.out
    assert "--json" in answer.out and "--quiet" in answer.out
    function = get_command(app).commands[name]
    assert len(function.help.splitlines()) == 1 and len(function.help) < 60
    if width == 80:
        assert max(map(len, answer.out.splitlines())) <= 80


def test_without_arguments_there_is_help(ask):
    answer = ask()
    assert answer.code == 2 and "report-memory" in answer.out


def test_methods_complete_with_their_summaries():
    names = dict(_options.complete_method("lw"))
    assert set(names) >= {"lwf", "lwf-mc", "lwm"} and "memorizing" in names["lwm"]
    assert "icarl" not in names


def test_versions_complete(known, monkeypatch):
    monkeypatch.setenv("EDGECIL_WORKSPACE", str(known))
    assert dict(_options.complete_version("")) == {
        "1": "icarl, 3 classes", "2": "icarl, 5 classes",
    }  # fmt: skip


def test_the_shell_gets_completions_without_torch(light):
    done = light(
        _EDGECIL_COMPLETE="complete_bash", COMP_WORDS="edgecil learn --method lw", COMP_CWORD="3"
    )
    known = ["lwf", "lwf-coreset", "lwf-mc", "lwf-synthetic", "lwm"]
    assert done.stdout.split() == known, done.stderr
