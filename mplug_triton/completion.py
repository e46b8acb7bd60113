"""Shell completion for `mplug`, written by shtab from the parsers of all commands."""

from __future__ import annotations

import argparse

import shtab

from mplug_triton.commands import COMMANDS, Command
from mplug_triton.program import MissingPackage, parser_of

SHELLS = tuple(shtab.SUPPORTED_SHELLS)
SUMMARY = "print the completion script of a shell"


def completion_script(shell: str) -> str:
    """Return the script that completes `mplug` in a shell of SHELLS.

    Commands whose packages are not installed are completed by their names alone.
    """
    parser = argparse.ArgumentParser(prog="mplug")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command")
    for command in COMMANDS.values():
        _add(commands, command)
    own = commands.add_parser("completion", help=SUMMARY)
    own.add_argument("shell", choices=SHELLS)
    return shtab.complete(parser, shell)


def _add(commands: argparse._SubParsersAction, command: Command) -> None:
    try:
        if not command.subcommands:
            _copy(parser_of(command), commands, command.name, command.summary)
            return
        parsers = {name: parser_of(command, name) for name in command.subcommands}
    except MissingPackage:
        commands.add_parser(command.name, help=command.summary)
        return
    inner = commands.add_parser(command.name, help=command.summary).add_subparsers()
    for name, parser in parsers.items():
        _copy(parser, inner, name, parser.description or name)


def _copy(source: argparse.ArgumentParser, commands: argparse._SubParsersAction, name: str, summary: str) -> None:
    """Add what a program takes as a command below `mplug`; where a value has no choices, files are completed."""
    target = commands.add_parser(name, help=summary, add_help=False)  # --help is among what is added
    for action in source._actions:
        if not action.choices and action.nargs != 0 and action.type not in (int, float):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if isinstance(action.choices, dict) and not isinstance(action, argparse._SubParsersAction):
            action.choices = list(action.choices)  # a dictionary of choices would pass for subcommands
        target._add_action(action)
