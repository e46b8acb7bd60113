#!/bin/sh
# Run a command after NVIDIA's entry point, where the image has it: it makes a driver older than the image's CUDA usable.
# `exec` throughout, so that the command gets the container's signals itself.
entry=/opt/nvidia/nvidia_entrypoint.sh
if [ -x "$entry" ]; then
    exec "$entry" "$@"
fi
exec "$@"
