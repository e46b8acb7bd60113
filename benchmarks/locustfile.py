"""Load test with locust: users over gRPC and over HTTP ask for captions of mixed pictures, lengths and beams.

Headless against a server that starts and stops with it (`make load`), or by hand:

    python -m mplug.server build/demo
    locust -f benchmarks/locustfile.py --headless -u 16 -r 16 -t 60s
    locust -f benchmarks/locustfile.py                                   # its page: http://localhost:8089

Captions per second, failures and latency percentiles are in locust's own statistics, a row per protocol and
number of beams. A bad request now and then is part of the mix: it counts as a success when it is refused as
it should be, and as a failure when it is not.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import gevent
import grpc.experimental.gevent as grpc_gevent
from locust import User, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

# gRPC's own threads would block gevent's loop, on which all users live.
grpc_gevent.init_gevent()

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # locust puts the folder of this file on the path, not the repository
    sys.path.insert(0, str(ROOT))

from benchmarks.measure.mixed_requests import BAD, PROMPTS, good_options  # noqa: E402
from benchmarks.measure.pictures import picture  # noqa: E402
from clients.client import (  # noqa: E402
    API_KEY_VARIABLE,
    Client,
    ClientError,
    calls,
    read_api_key,
)

PICTURE_SUFFIXES = (".jpg", ".png", ".webp")
#: Pictures of noise beside the examples, so that not every request meets the response cache.
DRAWN_PICTURES = 100
BAD_SHARE = 0.05
REQUEST_SECONDS = 120.0


@events.init_command_line_parser.add_listener
def add_arguments(parser: LocustArgumentParser) -> None:
    """Add the server's addresses, which are also fields of locust's page."""
    parser.add_argument("--grpc-url", default="localhost:8001", metavar="HOST:PORT", help="the server's gRPC port")
    parser.add_argument("--http-url", default="localhost:8000", metavar="HOST:PORT", help="the server's HTTP port")
    parser.add_argument("--pictures", default=str(ROOT / "examples"), metavar="DIR", help="pictures to send")
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        include_in_web_ui=False,
        help=f"the file with the API key that a gateway asks for; default: the key in ${API_KEY_VARIABLE}, if set",
    )
    parser.add_argument("--rate", type=float, default=0.0, help="captions/s per user; 0: as fast as they come")


@events.init.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Read the pictures and the API key once, before any user needs them."""
    folder = Path(environment.parsed_options.pictures)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
    file = environment.parsed_options.api_key_file
    environment.api_key = read_api_key(file) if file else None
    environment.pictures = [path.read_bytes() for path in found] + [picture(seed) for seed in range(DRAWN_PICTURES)]
    # A gRPC call that is killed half-way never lets go of its channel under gevent, and locust would hang at its
    # end: users finish their last request instead.
    environment.stop_timeout = environment.stop_timeout or REQUEST_SECONDS
    # gevent's clock stood still while this and the imports ran; the run's time would begin that much earlier.
    gevent.get_hub().loop.update_now()


@events.quit.add_listener
def end_at_once(exit_code: int, **_: object) -> None:
    """End the process after the last report: under gevent, gRPC's threads sometimes keep the interpreter alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


class CaptionUser(User):
    """Asks for one caption after the other over one connection of its own."""

    abstract = True
    protocol: str

    def wait_time(self) -> float:
        rate = self.environment.parsed_options.rate
        return constant_throughput(rate)(self) if rate > 0 else 0.0

    def on_start(self) -> None:
        options = self.environment.parsed_options
        url = options.grpc_url if self.protocol == "grpc" else options.http_url
        self._client = Client(url, self.protocol, timeout=REQUEST_SECONDS, api_key=self.environment.api_key)
        self._chance = random.Random()

    def on_stop(self) -> None:
        self._client.close()

    @task
    def caption(self) -> None:
        image = self._chance.choice(self.environment.pictures)
        if self._chance.random() < BAD_SHARE:
            names, call = self._chance.choice(BAD)(image)
            self._send("bad request", call, names)
            return
        options = good_options(self._chance)
        call = calls.caption(image, self._chance.choice((None, None, *PROMPTS)), **options)
        beams = options["num_beams"]
        self._send(f"caption, {beams} beam{'s' if beams > 1 else ''}", call)

    def _send(self, name: str, call: calls.Call[list[calls.Caption]], names: str = "") -> None:
        """Ask, and tell locust's statistics. `names`: the input that a refusal must name."""
        began, length, failure = time.perf_counter(), 0, None
        try:
            length = sum(len(caption.text) for caption in self._client.infer(call))
            if names:
                failure = ClientError(f"a bad {names} was answered with a caption")
        except ClientError as error:
            refused_well = names and error.status == "INVALID_ARGUMENT" and names in str(error)
            failure = None if refused_well else error
        self.environment.events.request.fire(
            request_type=self.protocol.upper(),
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=length,
            exception=failure,
            context={},
        )


class GrpcUser(CaptionUser):
    """Three of four users, as most services would."""

    protocol = "grpc"
    weight = 3


class HttpUser(CaptionUser):
    """Over HTTP with binary tensors."""

    protocol = "http"
    weight = 1
