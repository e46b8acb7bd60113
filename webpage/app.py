"""A page in the browser to try a served mPLUG.

    python webpage/app.py --url localhost:8001

The page shows a tab for each thing that the server's repository can do. It listens on 127.0.0.1 alone unless
--host says otherwise, keeps uploads until it ends, and neither it nor the browser fetches anything from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: Python looks beside this file, our packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

# Read by Gradio when it is imported: nothing is reported to anybody.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}

from clients.client import API_KEY_VARIABLE, DEFAULT_TIMEOUT, DEFAULT_URL, Client, ClientError, read_api_key

HOST, PORT = "127.0.0.1", 7860
#: A server that is just starting is waited for so long, seconds.
WAIT_SECONDS = 60.0
MAX_UPLOAD = "64mb"  # what the server takes of a video
#: The browser may load from the page's own address and nowhere else.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parse(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        connect = _connector(options)
        with connect() as client:
            client.wait_ready(options.wait, ended)
            _check_port(options.host, options.port)
            models = served_models(client, options)
    except (ClientError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="mplug-page-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        page = _launch(options, connect, models)
        print(f"ready: open {page.local_url} in a browser (Ctrl-C ends it)", flush=True)
        ended.wait()
        for number in (signal.SIGTERM, signal.SIGINT):  # who ended us may say so again, while we go
            signal.signal(number, signal.SIG_IGN)
        page.close(verbose=False)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--url", default=DEFAULT_URL["grpc"], metavar="HOST:PORT", help="the server's gRPC port (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint", default="", metavar="NAME", help="which one, where the server's repository holds several"
    )
    parser.add_argument("--host", default=HOST, help="address the page listens on (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=PORT, help="the page's port (default: %(default)s)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT,
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
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="the file with the API key that a gateway in front of the server asks for; "
        f"default: the key in {API_KEY_VARIABLE}, if set",
    )
    return parser.parse_args(arguments)


def _connector(options: argparse.Namespace) -> Callable[[], Client]:
    """Return what makes a client of the server. Raises ClientError for an API key file that cannot be read."""
    key = None if options.api_key_file is None else read_api_key(options.api_key_file)
    return partial(Client, options.url, timeout=options.timeout, checkpoint=options.checkpoint, api_key=key)


def served_models(client: Client, options: argparse.Namespace) -> frozenset[str]:
    """The public models of a checkpoint that are ready. Raises ClientError where none has a tab."""
    from webpage.tabs import MODELS, TABS

    models = frozenset(name for name in MODELS if client.is_ready(name))
    if not any(tab.is_served(models) for tab in TABS):
        of = f" of the checkpoint {options.checkpoint}" if options.checkpoint else ""
        raise ClientError(f"the server at {options.url} serves none of {', '.join(MODELS)}{of}", "NOT_FOUND")
    return models


def _check_port(host: str, port: int) -> None:
    """Raises OSError, one line, where the page cannot listen."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise OSError(f"the page cannot listen on {host}:{port}: {reason}; choose another --port") from error


def _launch(options: argparse.Namespace, connect: Callable[[], Client], models: frozenset[str]) -> Any:
    """Lay the page out and serve it from a thread; returns Gradio's Blocks."""
    import gradio as gr
    from starlette.middleware import Middleware

    from webpage.looks import SCRIPT, STYLE, theme
    from webpage.tabs import TABS, Ask

    ask = Ask(connect, models)
    with gr.Blocks(title="mPLUG", analytics_enabled=False) as page:
        gr.Markdown(f"# mPLUG on Triton\nAsk the server at `{options.url}` about pictures: drop, paste or choose one.")
        with gr.Tabs():
            for tab in TABS:
                if tab.is_served(models):
                    with gr.Tab(tab.title):
                        tab.fill(ask)
    page.launch(
        server_name=options.host,
        server_port=options.port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        ssr_mode=False,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        css=STYLE,
        js=SCRIPT,
        theme=theme(),
        app_kwargs={"middleware": [Middleware(OwnAddressOnly)]},
    )
    return page


class OwnAddressOnly:
    """ASGI middleware: every answer carries the policy that keeps the browser from loading from elsewhere."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[..., Awaitable[None]]) -> None:
        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", POLICY)]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


if __name__ == "__main__":
    sys.exit(main())
