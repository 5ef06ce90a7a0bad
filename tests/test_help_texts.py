"""`--help` of both programs is complete: every command has words and an example, every option has help."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

import station.cli
import train.cli

PROGRAMS = {"station": station.cli.app, "station-train": train.cli.app}
GIVEN_BY_TYPER = {"--install-completion", "--show-completion", "--help"}


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


ALL = {path: command for name, app in PROGRAMS.items() for path, command in commands(typer.main.get_command(app), name)}


def plain(text: str) -> str:
    """Without the marks of rich."""
    return re.sub(r"\[/?[a-z ]*\]", "", text)


@pytest.mark.parametrize("path", ALL)
def test_every_command_says_what_it_does(path: str) -> None:
    command = ALL[path]
    first = (command.help or "").strip().splitlines()[0]
    assert len(first.split()) > 4
    assert first.endswith((".", ":"))


def examples(path: str) -> list[str]:
    """The command lines that its help shows."""
    text = plain(f"{ALL[path].help}\n{ALL[path].epilog or ''}").replace("`", "")
    program = path.split(maxsplit=1)[0]
    return [
        line.partition(program)[2]
        for line in text.splitlines()
        if re.match(rf"^\s*(Example: )?{program} (?!COMMAND)", line)
    ]


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_an_example_that_its_parser_takes(path: str) -> None:
    assert examples(path), "no Example: in its help"
    program = path.split(maxsplit=1)[0]
    for example in examples(path):
        words = shlex.split(example.partition("|")[0])
        command = ALL[program]
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(program, words, resilient_parsing=False)  # an unknown or missing option raises


@pytest.mark.parametrize("path", ALL)
def test_every_option_has_help(path: str) -> None:
    told = {
        parameter.name: parameter.help
        for parameter in ALL[path].params
        if not GIVEN_BY_TYPER & set(getattr(parameter, "opts", ()))
    }
    assert [name for name, help_ in told.items() if not help_ or len(help_.split()) < 2] == []


@pytest.mark.parametrize("path", ALL)
def test_metavars_say_what_to_put_there(path: str) -> None:
    """Not TEXT, INTEGER or PATH, where there is a better word."""
    shown = {
        parameter.opts[0]: parameter.metavar
        for parameter in ALL[path].params
        if not getattr(parameter, "is_flag", False) and not GIVEN_BY_TYPER & set(parameter.opts)
    }
    assert [name for name, metavar in shown.items() if not metavar] == []
