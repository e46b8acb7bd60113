"""What the command lines of this folder share: options, how failures are reported, and the exit code.

A command prints answers on standard output and failures on standard error, one line each, and ends with 0 when
everything was answered and with 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from clients.client import API_KEY_VARIABLE, DEFAULT_TIMEOUT, DEFAULT_URL, Client, ClientError, read_api_key

T = TypeVar("T")

INTERRUPTED = 130  # as shells report Ctrl-C
_SEARCH = ("num_beams", "min_length", "max_length", "num_return", "length_penalty")


class Parser(argparse.ArgumentParser):
    """Takes positional arguments anywhere between the options; wrong usage gives one line and exit code 1."""

    def __init__(self, description: str, example: str = "", **arguments: Any) -> None:
        super().__init__(
            description=description,
            epilog=f"example:\n{example.rstrip()}" if example else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **arguments,
        )

    def error(self, message: str) -> NoReturn:
        # Scripts rely on one line and exit code 1 for every failure; argparse would print usage and exit 2.
        self.exit(1, f"error: {' '.join(message.split())} (see --help)\n")


def add_server(parser: argparse.ArgumentParser, *, timeout_of: str = "one answer") -> None:
    """Add the options that say where the server is and how to reach it."""
    ports = ", ".join(f"{url} over {protocol}" for protocol, url in DEFAULT_URL.items())
    group = parser.add_argument_group("server")
    group.add_argument("--url", metavar="HOST:PORT", help=f"the server; default: {ports}")
    group.add_argument("--protocol", choices=list(DEFAULT_URL), default="grpc", help="default: grpc")
    group.add_argument(
        "--checkpoint",
        default="",
        metavar="NAME",
        help="the checkpoint to use when the server has several: requests go to NAME_caption, and so on",
    )
    group.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=DEFAULT_TIMEOUT,
        help=f"time limit for {timeout_of}, retries included; default: {DEFAULT_TIMEOUT:g}",
    )
    group.add_argument(
        "--retries",
        type=int,
        metavar="N",
        help="how often a request is sent again when the server is busy, shutting down or cannot be reached; "
        "default: 5 (3 when it cannot be reached)",
    )
    group.add_argument(
        "--shared-memory",
        action="store_true",
        help="send large inputs through shared memory; for a server on this host with --allow-shared-memory",
    )
    group.add_argument(
        "--shared-memory-key",
        metavar="FILE",
        help="the file with the server's key to it; default: $MPLUG_SHARED_MEMORY_KEY_FILE, or the one that a server "
        "of this user writes for its port",
    )
    add_api_key(group)


def add_api_key(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option that names the file of the API key; the key itself is never on a command line."""
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help=f"the file with the API key that a gateway asks for; default: the key in ${API_KEY_VARIABLE}, if set",
    )


def api_key(options: argparse.Namespace) -> str | None:
    """Return the key in the file that `add_api_key` read the name of; None without one. Raises ClientError."""
    return None if options.api_key_file is None else read_api_key(options.api_key_file)


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"one JSON object per {what}")


def add_search(parser: argparse.ArgumentParser, answer: str) -> None:
    """Add the options of a generating model; the server knows their limits."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--num-beams", type=int, metavar="N", help="beams of the search; default: the checkpoint's (5 as published)"
    )
    group.add_argument(
        "--min-length", type=int, metavar="TOKENS", help=f"minimum length of each {answer}; default: the checkpoint's"
    )
    group.add_argument(
        "--max-length", type=int, metavar="TOKENS", help=f"maximum length of each {answer}; default: the checkpoint's"
    )
    group.add_argument("--num-return", type=int, metavar="N", help=f"number of {answer}s to return; default: 1")
    group.add_argument("--length-penalty", type=float, metavar="ALPHA", help=f"values above 0 favour longer {answer}s")


def search_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_search` read, without the options that were left out."""
    return {name: value for name in _SEARCH if (value := getattr(options, name)) is not None}


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the options for a video, or the frames of one, in place of pictures."""
    group = parser.add_argument_group("video")
    group.add_argument("--video", metavar="FILE", help="a video in place of a picture: MP4, WebM, GIF …")
    group.add_argument("--frames", nargs="+", metavar="FILE", help="pictures that are the frames of one video")
    group.add_argument(
        "--num-frames",
        type=int,
        metavar="N",
        help="number of frames to use, 1 to 16; default: 8 of a video, all of --frames",
    )


def visual_subjects(
    parser: Parser, options: argparse.Namespace, pictures: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """Return the subjects of a command as (name, arguments of the client's method), from pictures and `add_video`.

    Wrong usage when there is none, or when there are both pictures and a video.
    """
    given = [bool(pictures), options.video is not None, options.frames is not None]
    if sum(given) != 1:
        parser.error("give pictures, or --video FILE, or --frames FILE …")
    if pictures and options.num_frames is not None:
        parser.error("--num-frames is for --video and --frames")
    if options.video is not None:
        return [(options.video, {"video": options.video, "frames": options.num_frames})]
    if options.frames is not None:
        return [(options.frames[0], {"image": options.frames, "frames": options.num_frames})]
    return [(picture, {"image": picture}) for picture in pictures]


def connection_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `Client` and `AsyncClient`, from `add_server`. Raises ClientError."""
    return {
        "url": options.url,
        "protocol": options.protocol,
        "timeout": options.timeout,
        "shared_memory": options.shared_memory_key or options.shared_memory,
        "retries": options.retries,
        "checkpoint": options.checkpoint,
        "api_key": api_key(options),
    }


def ask_each(
    options: argparse.Namespace,
    subjects: list[tuple[str, dict[str, Any]]],
    ask: Callable[..., T],
    show: Callable[[str, T], None],
    *,
    noun: str = "image",
) -> int:
    """Ask about one subject after the other and show each answer as it comes; returns the exit code.

    `ask(client, **arguments)` asks, `show(name, answer)` prints. A failure is reported and the rest is still asked;
    with --json a failure is an object, too.
    """
    try:
        client = Client(**connection_arguments(options))
    except ClientError as error:
        return fail(str(error))
    code = 0
    with client:
        unreachable: ClientError | None = None
        for name, arguments in subjects:
            try:
                if unreachable is not None:
                    raise unreachable
                answer = ask(client, **arguments)
            except ClientError as error:
                if error.status == "UNREADABLE":
                    code = fail(str(error))  # names the file already
                elif error.status != "UNREACHABLE":
                    code = fail(f"{name}: {error}")
                elif unreachable is None:  # reported once: the next request would find no server either
                    unreachable, code = error, fail(str(error))
                if options.json:
                    print_json({noun: name, "error": str(error)})
            else:
                show(name, answer)
    return code


def print_json(document: dict[str, Any]) -> None:
    """Print a document on one line and flush it."""
    print(json.dumps(document), flush=True)


def fail(message: str) -> int:
    """Report a failure on standard error; returns the exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return 1


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command as a script: no stack trace for Ctrl-C, a closed pipe, or file names that cannot be printed."""
    tolerate_any_name()
    try:
        code = main()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        code = 1
    except OSError as error:
        code = fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(code)


def tolerate_any_name() -> None:
    """Let file names be printed whose bytes no encoding holds."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
