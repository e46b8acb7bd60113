"""The command `mplug`: every program of the repository under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches

from mplug_triton import __version__
from mplug_triton.commands import COMMANDS, Command
from mplug_triton.program import MissingPackage, parser_of, run

_INTRODUCTION = """\
usage: mplug COMMAND …

mPLUG captions pictures and videos, answers questions about them, searches them and judges statements, served by
NVIDIA Triton. `mplug COMMAND --help` explains a command.
"""
_EXAMPLE = """\
Begin with a checkpoint folder and a picture:
  mplug build path/to/checkpoint --output repository
  mplug serve repository                              # leave it running
  mplug caption photo.jpg                             # in another terminal
"""
_OTHERS = {
    "completion": "print the completion script of a shell: bash, zsh, fish …",
    "--version": "print the version",
    "--help": "print this list",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; a subcommand leaves with its own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        print(overview(), file=sys.stderr)
        return 1
    name, rest = words[0], words[1:]
    if name in ("-h", "--help", "help"):
        print(overview())
        return 0
    if name in ("-V", "--version"):
        print(f"mplug {__version__}")
        return 0
    try:
        if name == "completion":
            return _print_completion(rest)
        if name in COMMANDS:
            return _run(COMMANDS[name], rest)
    except MissingPackage as error:
        return _fail(str(error))
    near = get_close_matches(name, [*COMMANDS, "completion"], n=1)
    return _fail(f"mplug has no command {name!r}{f'; did you mean {near[0]}?' if near else ''} (see mplug --help)")


def overview() -> str:
    """Return the list of all commands, each with a line."""
    groups: dict[str, list[str]] = {}
    for command in COMMANDS.values():
        needs = f"  [{command.extra}]" if command.extra else ""
        groups.setdefault(command.group, []).append(f"  {command.name:14s}{command.summary}{needs}")
    lists = "\n\n".join(f"{title}:\n" + "\n".join(lines) for title, lines in groups.items())
    others = "\n".join(f"  {name:14s}{summary}" for name, summary in _OTHERS.items())
    extras = "[NAME]: needs an extra of the package, pip install 'mplug-triton[NAME]'."
    return f"{_INTRODUCTION}\n{lists}\n\nOther:\n{others}\n\n{_EXAMPLE}\n{extras}"


def _run(command: Command, arguments: list[str]) -> int:
    """Run a subcommand; its --help speaks of `mplug NAME`."""
    options = arguments[: arguments.index("--run")] if "--run" in arguments else arguments
    if {"-h", "--help"} & set(options):
        subcommand = [word for word in options if word in command.subcommands][:1]
        parser_of(command, *subcommand).print_help()
        return 0
    run(command, arguments)
    return 0


def _print_completion(arguments: list[str]) -> int:
    from mplug_triton.completion import SHELLS, completion_script  # shtab is needed by nothing else

    if len(arguments) != 1 or arguments[0] not in SHELLS:
        return _fail(f"mplug completion takes one of {', '.join(SHELLS)}, as in: mplug completion bash")
    print(completion_script(arguments[0]))
    return 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
