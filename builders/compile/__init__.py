"""Stages to ONNX, and ONNX to what a runtime executes, compared with PyTorch."""
