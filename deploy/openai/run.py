"""An OpenAI-compatible endpoint in front of a served mPLUG.

    python deploy/openai/run.py --url localhost:8001

Answers /v1/chat/completions, /v1/embeddings and /v1/models at http://127.0.0.1:8080, as docs/openai.md describes,
until SIGTERM or Ctrl-C; requests in flight are answered first. It asks the server over gRPC, and fetches nothing from
elsewhere.
Environment: MPLUG_OPENAI_API_KEY, the key that requests to it must carry; MPLUG_API_KEY, the key that it sends to a
gateway in front of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvicorn

from clients.client import API_KEY_VARIABLE, DEFAULT_URL, AsyncClient, ClientError, read_api_key
from deploy.openai.admission import Limits
from deploy.openai.app import Endpoint, application
from deploy.openai.catalogue import Catalogue

HOST, PORT = "127.0.0.1", 8080
WAIT_SECONDS = 60.0  # for a server that is starting
DRAIN_SECONDS = 30  # for requests in flight when the endpoint ends
MAX_CONNECTIONS = 1024
KEY = "MPLUG_OPENAI_API_KEY"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = _parse(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        with _listen(options.host, options.port) as listener:
            return asyncio.run(_serve(options, listener))
    except (ClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # uvicorn raises it again when it has ended
        return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    limits = Limits()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", default=DEFAULT_URL["grpc"], metavar="HOST:PORT", help="the server's gRPC port (default: %(default)s)"
    )
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s, this machine)")
    parser.add_argument(
        "--port", type=int, default=PORT, help="port to listen on; 0 for a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--model-name", default="mplug", metavar="NAME", help="what the model is called (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        metavar="NAME",
        help="also offer this checkpoint of a repository of several, by its name; may be given again",
    )
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key that requests may carry; every user of this machine can read it here, so rather set {KEY}",
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="the file with the API key that a gateway in front of the server asks for; "
        f"default: the key in {API_KEY_VARIABLE}, if set",
    )
    parser.add_argument(
        "--ignore-system",
        action="store_true",
        help="take system messages, which have no effect, instead of refusing them",
    )
    parser.add_argument(
        "--in-flight",
        type=_positive,
        default=limits.in_flight,
        metavar="N",
        help="questions at the server (default: %(default)s)",
    )
    parser.add_argument(
        "--waiting",
        type=_positive,
        default=limits.waiting,
        metavar="N",
        help="requests beyond them (default: %(default)s)",
    )
    parser.add_argument(
        "--max-body-mb",
        type=_positive,
        default=limits.body_bytes >> 20,
        metavar="MB",
        help="MiB of one request (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=limits.answer_seconds,
        metavar="SECONDS",
        help="for one answer (default: %(default)g)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="for a server that is starting (default: %(default)g)",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"the endpoint cannot listen on {host}:{port}: {reason}; choose another --port") from error


async def _serve(options: argparse.Namespace, listener: socket.socket) -> int:
    names = {options.model_name: "", **{name: name for name in options.checkpoint}}
    upstream_key = None if options.api_key_file is None else read_api_key(options.api_key_file)
    clients = {
        name: AsyncClient(options.url, timeout=options.timeout, checkpoint=checkpoint, api_key=upstream_key)
        for name, checkpoint in names.items()
    }
    endpoint = Endpoint(
        Catalogue(clients),
        Limits(
            in_flight=options.in_flight,
            waiting=options.waiting,
            body_bytes=options.max_body_mb << 20,
            answer_seconds=options.timeout,
        ),
        api_keys=[key for key in (*options.api_key, os.environ.get(KEY, "")) if key],
        ignore_system=options.ignore_system,
    )
    await next(iter(clients.values())).wait_ready(options.wait)
    offered = await _offered(endpoint.catalogue, options.url)
    server = uvicorn.Server(
        uvicorn.Config(
            application(endpoint),
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            server_header=False,
        )
    )
    host, port = listener.getsockname()[:2]
    print(f"ready: {', '.join(offered)} at http://{host}:{port}/v1", flush=True)
    # uvicorn drains on SIGTERM and then raises it again, for whoever had a handler before it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    await server.serve(sockets=[listener])
    return 0


async def _offered(catalogue: Catalogue, url: str) -> list[str]:
    """Return the models that the server has. Raises ClientError when there is none."""
    names = [each["id"] for each in (await catalogue.listed(0))["data"]]
    if not names:
        raise ClientError(f"the server at {url} neither captions nor answers nor embeds", "NOT_FOUND")
    return names


if __name__ == "__main__":
    sys.exit(main())
