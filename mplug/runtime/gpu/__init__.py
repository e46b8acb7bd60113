"""Engines on a GPU: device memory, TensorRT, DLPack."""
