"""Take the schemas of the custom resources that our manifests use from the projects' own CRDs.

    python deploy/kubernetes/schemas/vendor.py CRD.yaml …

Writes KIND.json beside this file for each kind of `KINDS` in the CRDs: the OpenAPI schema of one version, without
descriptions. An InferenceService keeps of its predictor what ours can use: the whole is 2 MB, most of it one copy of a
pod's schema for each framework. SOURCES.md names where each came from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
#: Kind → the version of its API.
KINDS = {
    "ScaledObject": "v1alpha1",
    "GRPCRoute": "v1",
    "HTTPRoute": "v1",
    "PodMonitor": "v1",
    "PrometheusRule": "v1",
    "ServingRuntime": "v1alpha1",
    "InferenceService": "v1beta1",
}
#: Of an InferenceService's predictor: our manifests are checked against these alone, all other fields are refused.
PREDICTOR = (
    "annotations",
    "automountServiceAccountToken",
    "autoScaling",
    "containerConcurrency",
    "labels",
    "maxReplicas",
    "minReplicas",
    "model",
    "nodeSelector",
    "scaleMetric",
    "scaleTarget",
    "securityContext",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
    "timeout",
    "tolerations",
)


def main(paths: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    for path in paths:
        for document in yaml.safe_load_all(Path(path).read_text()):
            kind = document["spec"]["names"]["kind"]
            if kind not in KINDS:
                raise SystemExit(f"error: {path} defines {kind}; known: {', '.join(KINDS)}")
            schema = _schema(document, KINDS[kind])
            if kind == "InferenceService":
                spec = schema["properties"]["spec"]
                predictor = spec["properties"]["predictor"]
                predictor["properties"] = {name: predictor["properties"][name] for name in PREDICTOR}
                spec["properties"] = {"predictor": predictor}
            api = f"{document['spec']['group']}/{KINDS[kind]}"
            content = {"apiVersion": api, "kind": kind, "schema": _without_descriptions(schema)}
            (FOLDER / f"{kind}.json").write_text(json.dumps(content, separators=(",", ":"), sort_keys=True) + "\n")
    return 0


def _schema(document: dict[str, Any], version: str) -> dict[str, Any]:
    for found in document["spec"]["versions"]:
        if found["name"] == version:
            return found["schema"]["openAPIV3Schema"]
    raise SystemExit(f"error: {document['metadata']['name']} has no version {version}")


def _without_descriptions(schema: Any) -> Any:
    """Drop each `description` that is a text; one that is a property of that name stays."""
    if isinstance(schema, list):
        return [_without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
