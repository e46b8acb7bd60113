"""Run a compiled stage: one small interface, one runtime per kind of artefact."""

from mplug.runtime.interface import Decoder, Graph, Runtime, RuntimeUnavailable, open_decoder, open_graph, open_runtime

__all__ = ["Decoder", "Graph", "Runtime", "RuntimeUnavailable", "open_decoder", "open_graph", "open_runtime"]
