# syntax=docker/dockerfile:1
# The GPU path in NVIDIA's Triton image: `serve` is small and serves a built repository, `build` also builds one.
#
#   docker build --target serve --tag mplug-serve .
#   docker build --target build --tag mplug-build .
#
# Release 25.10 brings TensorRT 10.13.3 and Python 3.12; requirements-gpu.txt pins the same TensorRT.
FROM nvcr.io/nvidia/tritonserver:25.10-py3 AS base

# Triton's Python backend runs the system's python3, so packages go there.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mplug
COPY requirements.txt requirements-serve.txt requirements-gpu.txt ./

# An engine loads only in the TensorRT that built it: the wheel's has to be the one that the server links.
RUN wanted=$(sed -n 's/^tensorrt-cu13==\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p' requirements-gpu.txt) \
 && if [ -z "$(find / -xdev -name "libnvinfer.so.$wanted*" -print -quit)" ]; then \
      echo "this image has another TensorRT than requirements-gpu.txt ($wanted):" >&2; \
      find / -xdev -name 'libnvinfer.so.*' >&2; exit 1; \
    fi

# Of requirements-serve.txt, what a served process imports. What the system's own packages have of it, such as PyYAML,
# pip cannot remove: it goes in front of them.
RUN grep -E '^(numpy|pillow|av|psutil|pyyaml|tokenizers)==' requirements-serve.txt > serve.txt \
 && python3 -m pip install --ignore-installed -r serve.txt -r requirements-gpu.txt


FROM base AS serve
COPY mplug ./mplug
COPY clients ./clients
RUN useradd --create-home --uid 10001 mplug
USER mplug
EXPOSE 8000 8001 8002 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8003/health/ready', timeout=4)"]
# The launcher waits for requests in flight when the container is stopped; NVIDIA's entry point would not.
ENTRYPOINT ["python3", "-m", "mplug.server"]
CMD ["/repository", "--host", "0.0.0.0"]


FROM base AS build
# PyTorch only exports and compares here: its build for the CPU does, some GB smaller, if pip is told where that is:
# --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_EXTRA_INDEX_URL
RUN sed -e '/^nvidia-pytriton==/d' -e '/^-r /d' requirements-serve.txt requirements.txt > build.txt \
 && python3 -m pip install -r build.txt
COPY . .
ENTRYPOINT ["python3", "builders/build.py"]
CMD ["--help"]
