"""Check Kubernetes manifests without a cluster: python deploy/kubernetes/check.py MANIFEST.yaml … (or - for stdin).

    helm template mplug deploy/kubernetes/mplug | python deploy/kubernetes/check.py -

Kinds of Kubernetes itself are held against the schemas of one of its releases, custom ones against those in schemas/.
A field that no schema names is a fault: an API server would drop or refuse it. Prints a line for each object; exit code
1 if one is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.37"
SCHEMAS = Path(__file__).parent / "schemas"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Check Kubernetes manifests without a cluster.")
    parser.add_argument("manifests", nargs="+", metavar="FILE", help="YAML; - is standard input")
    wrong = 0
    for path in parser.parse_args(argv).manifests:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        for manifest in manifests(text):
            found = faults(manifest)
            wrong += bool(found)
            name = manifest.get("metadata", {}).get("name")
            print(f"{manifest.get('kind')} {name}: {'; '.join(found) or 'as its schema says'}")
    return int(wrong > 0)


def manifests(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a stream of YAML documents. A key that is given twice in one mapping raises ValueError."""
    yield from filter(None, yaml.load_all(text, _UniqueKeys))


def faults(manifest: dict[str, Any]) -> list[str]:
    """Return what is wrong with one object, each with where it is; nothing is an empty list."""
    schema = _custom().get((manifest.get("apiVersion"), manifest.get("kind")))
    if schema is not None:
        found = jsonschema.Draft7Validator(schema).iter_errors(manifest)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return [f"no schema for {manifest.get('apiVersion')} {manifest.get('kind')}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:300]}"]
    return []


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which the second of two equal keys does not silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


@cache
def _custom() -> dict[tuple[str, str], dict[str, Any]]:
    """Return (apiVersion, kind) → JSON schema of the custom resources."""
    found = {}
    for path in SCHEMAS.glob("*.json"):
        content = json.loads(path.read_text())
        schema = _closed(content["schema"])
        schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        found[content["apiVersion"], content["kind"]] = schema
    return found


def _closed(schema: Any) -> Any:
    """Return a schema that takes no field beyond those that it names, as JSON Schema says it."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: value if key in ("enum", "default", "required") else _closed(value) for key, value in schema.items()}
    if closed.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    open_ended = closed.get("x-kubernetes-preserve-unknown-fields")
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict) and not open_ended:
        closed.setdefault("additionalProperties", False)
    return closed


if __name__ == "__main__":
    sys.exit(main())
