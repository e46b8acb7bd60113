"""The command line that caption, ask and embed share; it needs nothing but Python until it runs."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bulk import ray_settings
from bulk.errors import BulkError

INTERRUPTED = 130
NUMPY = 2  # the oldest major version that Ray Data's PyArrow imports
_MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"  # in a checkout
_SEARCH = ("num_beams", "min_length", "max_length", "length_penalty")


class Parser(argparse.ArgumentParser):
    """A parser with the arguments of every command, and exit code 1 for wrong usage."""

    def __init__(self, description: str, epilog: str) -> None:
        super().__init__(description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        sys.exit(fail(message))


def add_corpus(parser: argparse.ArgumentParser) -> None:
    """Add what every command that runs the pipeline takes."""
    parser.add_argument(
        "input", metavar="INPUT", help="a folder, a parquet file or a WebDataset shard; a path or a URI"
    )
    parser.add_argument("output", metavar="OUTPUT", help="folder of parquet files; a path or a URI")
    parser.add_argument(
        "--repository",
        default="build/demo",
        metavar="DIR",
        help="what builders/build.py made, at this path on every machine; default: %(default)s",
    )
    parser.add_argument("--retry", action="store_true", help="answer again the inputs that failed in an earlier run")
    columns = parser.add_argument_group("columns of parquet, endings of the members of shards")
    columns.add_argument("--picture-column", metavar="NAME", help="pictures: bytes or paths; default: the first found")
    columns.add_argument("--key-column", metavar="NAME", help="of parquet: a name of your own, copied to `key`")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--workers", type=positive, metavar="N", help="processes with the model; default: one per core")
    engine.add_argument("--threads", type=positive, default=1, metavar="N", help="of each worker; default: 1")
    engine.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs of each worker; default: 0")
    engine.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster; default: an own one on this machine")
    engine.add_argument(
        "--rows-per-file",
        type=positive,
        default=2000,
        metavar="N",
        help="what is not in a file yet is lost when everything dies; default: %(default)s",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the options of a beam search; the checkpoint knows their limits."""
    group = parser.add_argument_group("search")
    group.add_argument("--num-beams", type=int, metavar="N", help="beams; default: the checkpoint's (5 as published)")
    group.add_argument("--min-length", type=int, metavar="TOKENS", help="default: the checkpoint's")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="default: the checkpoint's")
    group.add_argument("--length-penalty", type=float, metavar="ALPHA", help="values above 0 favour longer texts")


def search_options(options: argparse.Namespace) -> dict[str, float]:
    """Return what `add_search` read, without the options that were left out."""
    return {name: value for name in _SEARCH if (value := getattr(options, name)) is not None}


def positive(text: str) -> int:
    """Parse a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return int(text)


def load(module: str, *, with_ray: bool = True) -> object:
    """Import a module of ours that needs the environment of bulk work; what does without Ray runs with any NumPy.

    Raises BulkError outside of it; in a wheel, ModuleNotFoundError, to which `mplug` says what extra to install.
    """
    try:
        if with_ray:
            ray_settings.prepare()
            _check_numpy(importlib.metadata.version("numpy"))
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _MAKEFILE.is_file() or (error.name or "").split(".")[0] in ("bulk", "mplug"):
            raise
        raise BulkError(
            f"{error.name or 'numpy'} is not installed here: `make bulk` makes an environment for bulk work, "
            f".venv/bulk; run .venv/bulk/bin/python {sys.argv[0]}"
        ) from None


def _check_numpy(version: str) -> None:
    """Raise BulkError for the NumPy of a server: pip lets Ray Data's PyArrow in beside it, and neither then works."""
    if int(version.partition(".")[0]) < NUMPY:
        raise BulkError(
            f"bulk work needs NumPy {NUMPY}, and this environment has NumPy {version}, as nvidia-pytriton wants it: "
            "`make bulk` makes an environment for bulk work, .venv/bulk; of a wheel, install the extra `bulk` in an "
            "environment without the other extras"
        )


def fail(message: str) -> int:
    """Report a failure on standard error; return the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 1


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command as a script: one line for what went wrong, no stack trace."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are no text
    try:
        code = main()
    except BulkError as error:
        code = fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on")
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    sys.exit(code)
