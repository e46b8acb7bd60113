"""Find, start, watch and drain a tritonserver: `python -m mplug.server`."""
