"""Write deploy/man/*.1 from the commands' own help: ``python docs/make_manpages.py``."""

import re
from collections.abc import Iterator
from pathlib import Path

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

import station.cli
import train.cli
from station import __version__

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "man"
PROGRAMS = {
    "station": (station.cli.app, "inspect a production line for surface defects"),
    "station-train": (train.cli.app, "train, evaluate and export models for station"),
}
SHELLS_OWN = {"--install-completion", "--show-completion"}


def escape(text: str) -> str:
    """Text as roff takes it: no line of it is a request, no backslash an escape."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return "\n".join(f"\\&{line}" if line.startswith((".", "\\(aq")) else line for line in escaped.split("\n"))


def formatted(text: str) -> str:
    """Help text: rich's and Markdown's marks become bold, lines of one paragraph are joined, examples stand alone."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        line = " ".join(paragraph.split())
        example = re.fullmatch(r"(?:Example: )?(?:\[cyan\](.*)\[/\]|`(station[^`]*)`)", line)
        if example and line.startswith(("Example", "[cyan]", "`")):
            parts.append(f".PP\n.RS 4\n.EX\n{escape(example.group(1) or example.group(2))}\n.EE\n.RE")
            continue
        line = escape(re.sub(r"\[/?(?:cyan)?\]|`", "", re.sub(r"\[bold\](.*?)\[/\]", r"**\1**", line)))
        parts.append(".PP\n" + re.sub(r"\*\*(.*?)\*\*", r"\\fB\1\\fR", line))
    return "\n".join(parts)


def option(parameter: TyperOption | TyperArgument) -> str:
    """An option or argument, its value and what it is for."""
    names = [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
    if parameter.param_type_name == "argument":
        head = f"\\fI{escape(parameter.metavar)}\\fR"
    else:
        head = ", ".join(f"\\fB{escape(name)}\\fR" for name in names)
        if not parameter.is_flag:
            head += f" \\fI{escape(parameter.metavar)}\\fR"
    notes = []
    if parameter.required:
        notes.append("Required.")
    shown = parameter.show_default
    default = shown if isinstance(shown, str) else parameter.default if shown is not False else None
    if default not in {None, ""} and not getattr(parameter, "is_flag", False):
        notes.append(f"Default: {default}.")
    words = re.sub(r"`|\[/?[a-z]*\]", "", " ".join([parameter.help.strip(), *notes]))
    return f".TP\n{head}\n{escape(words)}"


def commands(command: TyperGroup, path: str) -> Iterator[tuple[str, TyperCommand]]:
    """All that can be run, with their full names."""
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from commands(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


def section(path: str, command: TyperCommand) -> str:
    """One command."""
    parameters = [p for p in command.params if not SHELLS_OWN & set(p.opts) and p.name != "help"]
    arguments = "".join(f" \\fI{escape(p.metavar)}\\fR" for p in parameters if p.param_type_name == "argument")
    lines = [f".SS {escape(path)}", f"\\fB{escape(path)}\\fR [\\fIOPTIONS\\fR]{arguments}", formatted(command.help)]
    return "\n".join([*lines, *map(option, parameters)])


def page(program: str) -> str:
    """One program's page."""
    app, short = PROGRAMS[program]
    root = typer.main.get_command(app)
    other = next(name for name in PROGRAMS if name != program)
    codes = {"0": "Success.", "1": "Something failed; the message says what, and where that is explained."}
    codes["2"] = "An option is missing or wrong."
    if program == "station":
        codes["78"] = "The settings cannot be used."
    codes["130"] = "Interrupted by Ctrl-C."
    text = "\n".join(
        [
            f'.\\" Made by docs/make_manpages.py from the help of {program}.',
            f'.TH {program.upper()} 1 "" "cbigan\\-station {__version__}" "CBiGAN inspection station"',
            ".SH NAME",
            f"{escape(program)} \\- {short}",
            ".SH SYNOPSIS",
            f"\\fB{escape(program)}\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]",
            ".SH DESCRIPTION",
            formatted(str(root.help)),
            ".SH COMMANDS",
            *(section(path, command) for path, command in commands(root, program)),
            ".SH EXIT STATUS",
            *(f".TP\n{code}\n{escape(words)}" for code, words in codes.items()),
            ".SH EXAMPLES",
            formatted(str(root.epilog)),
            ".SH SEE ALSO",
            f"\\fB{escape(other)}\\fR(1); docs/errors.md, docs/settings.md",
            "",
        ]
    )
    return re.sub(r"^(\.SH .*\n)\.PP\n", r"\1", text, flags=re.MULTILINE)  # a section begins a paragraph itself


if __name__ == "__main__":
    for name in PROGRAMS:
        (FOLDER / f"{name}.1").write_text(page(name), encoding="utf-8")
