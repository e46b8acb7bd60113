"""Caption pictures with a running server.

python clients/caption.py examples/cat.jpg
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

if not __package__:  # run as a script: Python looks beside this file, our package is one folder up
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clients.client import DEFAULT_TIMEOUT, DEFAULT_URL, Caption, Client, ClientError

_EXAMPLE = """\
example:
  python clients/caption.py photo.jpg other.png --num-beams 3
  photo.jpg\ta cat asleep on a chair
  other.png\ttwo people on a beach

Exit code 0 when every image got its caption, else 1 and a line on stderr for what failed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Scripts rely on one line and exit code 1 for every failure; argparse would print usage and exit 2.
        self.exit(1, f"error: {message} (see --help)\n")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = _Parser(
        description="Caption images with a running mPLUG server.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ports = ", ".join(f"{url} over {protocol}" for protocol, url in DEFAULT_URL.items())
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file: JPEG, PNG, WebP …")
    parser.add_argument("--url", metavar="HOST:PORT", help=f"the server; default: {ports}")
    parser.add_argument("--protocol", choices=list(DEFAULT_URL), default="grpc", help="default: grpc")
    parser.add_argument("--prompt", help="how the caption begins")
    parser.add_argument(
        "--num-beams",
        type=int,
        metavar="N",
        help="beams of the search; default: the checkpoint's, 5 as published",
    )
    parser.add_argument("--min-length", type=int, metavar="TOKENS", help="default: the checkpoint's")
    parser.add_argument("--max-length", type=int, metavar="TOKENS", help="default: the checkpoint's")
    parser.add_argument("--num-return", type=int, metavar="N", help="captions per image; default: 1")
    parser.add_argument(
        "--length-penalty", type=float, metavar="ALPHA", help="more than 0 favours longer captions"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image, scores included")
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=DEFAULT_TIMEOUT,
        help=f"for one image; default: {DEFAULT_TIMEOUT:g}",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints a caption per image as they come; returns the exit code."""
    options = parse_arguments(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A file name may hold bytes that no encoding can print.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        client = Client(options.url, options.protocol, options.timeout)
    except ClientError as error:
        return _fail(str(error))
    code = 0
    with client:
        away: ClientError | None = None
        for image in options.images:
            try:
                if away is not None:
                    raise away
                captions = client.caption(
                    image,
                    options.prompt,
                    num_beams=options.num_beams,
                    min_length=options.min_length,
                    max_length=options.max_length,
                    num_return=options.num_return,
                    length_penalty=options.length_penalty,
                )
            except ClientError as error:
                if error.status == "UNREADABLE":
                    code = _fail(str(error))  # names the file already
                elif error.status != "UNREACHABLE":
                    code = _fail(f"{image}: {error}")
                elif away is None:  # once for all the images: nobody will answer for the next one either
                    away, code = error, _fail(str(error))
                if options.json:
                    print(json.dumps({"image": image, "error": str(error)}), flush=True)
            else:
                _print(image, captions, options.json, several=len(options.images) > 1)
    return code


def _print(image: str, captions: list[Caption], as_json: bool, several: bool) -> None:
    if as_json:
        print(json.dumps({"image": image, "captions": [asdict(each) for each in captions]}), flush=True)
        return
    for caption in captions:
        print(f"{image}\t{caption.text}" if several else caption.text, flush=True)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it; no stack trace for Ctrl-C
