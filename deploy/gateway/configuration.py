"""Envoy's configuration for the gateway: what passes, within which bounds, and to which servers.

Passed: unary inference, `/generate`, health and metadata of the public models. Everything else is 404: the stages,
streams, and all APIs that change a server. requests.lua looks into each request. Envoy's reference: envoyproxy.io, v3
API.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: As in mplug/tasks/table.py, which a gateway's machine need not have.
PUBLIC_MODELS = ("caption", "vqa", "embed_image", "embed_text", "match", "ground", "nlvr", "entail")
READY_PATH = "/health/ready"  # of a server's health port

API_KEY_HEADER = "x-api-key"
BODY_BYTES = 64 << 20  # of one request
HEADER_KIB, HEADERS = 32, 64
JSON_DEPTH = 32
JSON_TOKENS = 100_000  # quotes and brackets
GRPC_FIELDS = 4096  # of one message
NAME_BYTES = 256
COLLECT_BYTES = 4 << 20  # from this size on, a body's copy is freed at once
CONNECTIONS = 1024
STREAMS = 256  # requests at a time on one HTTP/2 connection
RECEIVE_SECONDS = 60  # for a whole request to arrive
ANSWER_SECONDS = 300
IDLE_SECONDS = 300
RETRIES = 4
HEAP_BYTES = 2 << 30  # near this, new requests are refused

NOT_PASSED = '{"error":"the gateway passes inference, health and metadata of the public models alone"}\n'

_TYPE = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class Server:
    """One mplug.server: its host and its HTTP, gRPC and health ports."""

    host: str
    http_port: int
    grpc_port: int
    health_port: int

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read HOST:HTTP:GRPC:HEALTH. Raises ValueError with what is wrong."""
        host, *ports = text.rsplit(":", 3)
        if len(ports) != 3 or not host or not all(port.isdigit() and 0 < int(port) < 2**16 for port in ports):
            raise ValueError(f"{text!r} is not HOST:HTTP-PORT:GRPC-PORT:HEALTH-PORT, as in 127.0.0.1:8000:8001:8003")
        return cls(host, *map(int, ports))


@dataclass(frozen=True)
class Gateway:
    """What the gateway listens on, and for whom. `api_keys`: name → key; none: open to all."""

    servers: tuple[Server, ...]
    host: str = "127.0.0.1"
    http_port: int = 9000
    grpc_port: int = 9001
    admin: Path | int | None = None  # a Unix socket, or a port of 127.0.0.1, for Envoy's own pages; it is drained there
    certificate: Path | None = None
    private_key: Path | None = None
    api_keys: tuple[tuple[str, str], ...] = ()


def configuration(gateway: Gateway) -> dict[str, Any]:
    """Return Envoy's bootstrap configuration, ready for JSON."""
    document = {
        "static_resources": {
            "listeners": [
                _listener(gateway, "http", gateway.http_port),
                _listener(gateway, "grpc", gateway.grpc_port),
            ],
            "clusters": [_cluster(gateway.servers, "http"), _cluster(gateway.servers, "grpc")],
        },
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                _named(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=CONNECTIONS,
                ),
                _named(
                    "envoy.resource_monitors.fixed_heap",
                    "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=HEAP_BYTES,
                ),
            ],
            "actions": [
                {
                    "name": "envoy.overload_actions.stop_accepting_requests",
                    "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": 0.9}}],
                }
            ],
        },
    }
    if isinstance(gateway.admin, int):
        document["admin"] = {"address": _address("127.0.0.1", gateway.admin)}
    elif gateway.admin is not None:
        document["admin"] = {"address": {"pipe": {"path": str(gateway.admin), "mode": 0o600}}}
    return document


def lua_source() -> str:
    """Return the text that Envoy's Lua filter runs."""
    limits = {
        "body_bytes": BODY_BYTES,
        "json_depth": JSON_DEPTH,
        "json_tokens": JSON_TOKENS,
        "grpc_fields": GRPC_FIELDS,
        "name_bytes": NAME_BYTES,
        "collect_bytes": COLLECT_BYTES,
    }
    head = "LIMITS = {" + ", ".join(f"{name} = {value}" for name, value in limits.items()) + "}\n"
    head += "PUBLIC_MODELS = {" + ", ".join(f"{name} = true" for name in PUBLIC_MODELS) + "}\n"
    return head + (Path(__file__).parent / "requests.lua").read_text()


def _listener(gateway: Gateway, name: str, port: int) -> dict[str, Any]:
    chain: dict[str, Any] = {"filters": [_connection_manager(gateway, name)]}
    if gateway.certificate is not None:
        chain["transport_socket"] = _named(
            "envoy.transport_sockets.tls",
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(gateway.certificate)},
                        "private_key": {"filename": str(gateway.private_key)},
                    }
                ],
            },
        )
    return {
        "name": name,
        "address": _address(gateway.host, port),
        "per_connection_buffer_limit_bytes": BODY_BYTES,
        "filter_chains": [chain],
    }


def _connection_manager(gateway: Gateway, name: str) -> dict[str, Any]:
    filters = []
    if gateway.api_keys:
        policies = {
            client: {
                "permissions": [{"any": True}],
                "principals": [{"header": {"name": API_KEY_HEADER, "string_match": {"exact": key}}}],
            }
            for client, key in gateway.api_keys
        }
        rules = {"action": "ALLOW", "policies": policies}
        filters.append(_named("envoy.filters.http.rbac", "extensions.filters.http.rbac.v3.RBAC", rules=rules))
    filters += [
        _named(
            "envoy.filters.http.lua",
            "extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": lua_source()},
        ),
        # Chunks become one body of a known length: tritonserver 24.10 dies of a hundred thousand small ones.
        _named("envoy.filters.http.buffer", "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=BODY_BYTES),
        _named("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    return _named(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="AUTO",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        max_request_headers_kb=HEADER_KIB,
        request_headers_timeout="10s",
        request_timeout=f"{RECEIVE_SECONDS}s",
        stream_idle_timeout=f"{IDLE_SECONDS}s",
        common_http_protocol_options={"idle_timeout": f"{IDLE_SECONDS}s", "max_headers_count": HEADERS},
        http2_protocol_options={"max_concurrent_streams": STREAMS},
        http_filters=filters,
        route_config={
            "virtual_hosts": [
                {
                    "name": "mplug",
                    "domains": ["*"],
                    "request_body_buffer_limit": BODY_BYTES,  # what cannot be kept cannot be sent again
                    "request_headers_to_remove": [
                        API_KEY_HEADER,
                        "accept-encoding",
                        "mplug-admin-key",
                        "mplug-shared-memory-key",
                        "triton-grpc-protocol-mplug-admin-key",
                        "triton-grpc-protocol-mplug-shared-memory-key",
                    ],
                    "routes": _routes(),
                }
            ]
        },
        access_log=[
            {
                **_named(
                    "envoy.access_loggers.stderr",
                    "extensions.access_loggers.stream.v3.StderrAccessLog",
                    log_format={
                        "text_format_source": {
                            "inline_string": "%START_TIME% %RESPONSE_CODE% grpc %GRPC_STATUS% %RESPONSE_FLAGS% "
                            "%RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% attempts %UPSTREAM_REQUEST_ATTEMPT_COUNT% "
                            "in %BYTES_RECEIVED% traceparent %REQ(TRACEPARENT)%\n"
                        }
                    },
                ),
                "filter": {
                    "status_code_filter": {
                        "comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "logged_from"}}
                    }
                },
            }
        ],
    )


def _routes() -> list[dict[str, Any]]:
    model = rf"/v2/models/(?:[A-Za-z0-9][A-Za-z0-9_-]*_)?(?:{'|'.join(PUBLIC_MODELS)})(?:/versions/[0-9]+)?"
    return [
        _route(f"{model}/(?:infer|generate)", "POST", "http"),
        _route(f"{model}(?:/ready)?", "GET", "http"),
        _route(r"/v2|/v2/health/(?:live|ready)", "GET", "http"),
        _route(
            r"/inference\.GRPCInferenceService/"
            r"(?:ModelInfer|ServerLive|ServerReady|ModelReady|ServerMetadata|ModelMetadata)",
            "POST",
            "grpc",
        ),
        _route(r"/grpc\.health\.v1\.Health/Check", "POST", "grpc"),
        {
            "match": {"prefix": "/"},
            "direct_response": {
                "status": 404,
                "body": {"inline_string": NOT_PASSED},
            },
        },
    ]


def _route(path: str, method: str, cluster: str) -> dict[str, Any]:
    if cluster == "grpc":
        # INTERNAL is what a request gets whose model process has just died; inference has no side effects.
        retry = {"retry_on": "unavailable,internal,reset,connect-failure,refused-stream"}
    else:
        retry = {
            "retry_on": "retriable-status-codes,reset,connect-failure,refused-stream",
            "retriable_status_codes": [500, 503],
        }
    return {
        "match": {
            "safe_regex": {"regex": path},
            "headers": [{"name": ":method", "string_match": {"exact": method}}],
        },
        "route": {
            "cluster": cluster,
            "timeout": f"{ANSWER_SECONDS}s",
            "max_stream_duration": {"grpc_timeout_header_max": f"{ANSWER_SECONDS}s"},
            "retry_policy": {
                **retry,
                "num_retries": RETRIES,
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
                "retry_host_predicate": [
                    _named(
                        "envoy.retry_host_predicates.previous_hosts",
                        "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                    )
                ],
                "host_selection_retry_max_attempts": 5,
            },
        },
    }


def _cluster(servers: tuple[Server, ...], name: str) -> dict[str, Any]:
    protocol: dict[str, Any] = {"http_protocol_options": {}}
    if name == "grpc":
        # Over HTTP/2 a server that no longer answers is noticed by its missing pings.
        protocol = {"http2_protocol_options": {"connection_keepalive": {"interval": "2s", "timeout": "2s"}}}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "lb_policy": "LEAST_REQUEST",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": BODY_BYTES,
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": 4096, "max_requests": 4096, "max_pending_requests": 4096, "max_retries": 1024}
            ]
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {"path": READY_PATH},
            }
        ],
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": protocol,
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": _address(server.host, getattr(server, f"{name}_port")),
                                "health_check_config": {"port_value": server.health_port},
                            }
                        }
                        for server in servers
                    ]
                }
            ],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _named(name: str, message: str, **fields: Any) -> dict[str, Any]:
    """One of Envoy's extensions: its name, and its configuration of that protobuf message."""
    return {"name": name, "typed_config": {"@type": f"{_TYPE}.{message}", **fields}}
