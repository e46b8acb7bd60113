"""Run a program of the repository as the subcommand of `mplug` that it is, or read its command line's parser."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

from mplug_triton.commands import Command
from mplug_triton.location import ROOMS

DISTRIBUTION = "mplug-triton"


class MissingPackage(Exception):
    """A command needs a package that is not installed; the message names it and what to install."""


class _Parsing(BaseException):
    """A program has built its parser and is about to read its arguments. Not an Exception: nothing may handle it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def run(command: Command, arguments: Sequence[str]) -> None:
    """Run a command as if its program had been started with these arguments; leaves by SystemExit with its code.

    Raises MissingPackage where a package is not installed.
    """
    with _started(command, arguments):
        if command.is_script:
            runpy.run_path(str(ROOMS / command.program), run_name="__main__")
        else:
            runpy.run_module(command.program, run_name="__main__")


def parser_of(command: Command, *subcommand: str) -> argparse.ArgumentParser:
    """Return the parser of a command's options, its texts written as for `mplug`.

    The program is run up to the moment when it would read its arguments: options are declared there, and only there.
    Raises MissingPackage where a package is not installed.
    """

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Parsing(parser)

    methods = ("parse_known_args", "parse_known_intermixed_args")
    with patch.multiple(argparse.ArgumentParser, **dict.fromkeys(methods, stop)):
        try:
            run(command, subcommand)
        except _Parsing as reached:
            parser = reached.parser
        else:
            raise AssertionError(f"{command.program} reads no arguments")
    parser.prog = " ".join(("mplug", command.name, *subcommand))
    parser.description = as_typed(parser.description, command)
    parser.epilog = as_typed(parser.epilog, command)
    return parser


def as_typed(text: str | None, command: Command) -> str | None:
    """Return a program's own text with `mplug NAME` where it says how it is started from a checkout."""
    if text is None:
        return None
    program = re.escape(command.program)
    return re.sub(rf"python (-m )?{program}|(?<![\w/]){program}", f"mplug {command.name}", text)


@contextmanager
def _started(command: Command, arguments: Sequence[str]) -> Iterator[None]:
    """Lend the process to a program: `sys.argv`, the path that it imports from, and one line for a missing package."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [f"mplug {command.name}", *arguments]
    sys.path.insert(0, str(ROOMS))
    try:
        yield
    except ModuleNotFoundError as error:
        what = f"{DISTRIBUTION}[{command.extra}]" if command.extra else DISTRIBUTION
        raise MissingPackage(
            f"mplug {command.name} needs the package {error.name}, which is not installed: pip install '{what}'"
        ) from error
    finally:
        sys.argv, sys.path[:] = argv, path
