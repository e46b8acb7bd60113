# syntax=docker/dockerfile:1
# The GPU path in NVIDIA's Triton image: `serve` is small and serves a built repository, `build` also builds one.
# `cpu` does both without a GPU. `gateway` is Envoy with our configuration, `openai` the OpenAI-compatible endpoint; both
# are without Triton.
#
#   docker build --target serve --tag mplug-serve .
#   docker build --target build --tag mplug-build .
#   docker build --target cpu --tag mplug-cpu .
#   docker build --target gateway --tag mplug-gateway .
#   docker build --target openai --tag mplug-openai .
#
# Release 25.10 brings TensorRT 10.13.3 and Python 3.12; requirements-gpu.txt pins the same TensorRT. Newer releases mend
# vulnerabilities (docs/security.md). 26.07 is based on CUDA 13.3.1; which TensorRT it brings has not been verified here:
# --build-arg TRITON_RELEASE=26.07 stops below with the versions that it finds, which then go into requirements-gpu.txt.
ARG TRITON_RELEASE=25.10
FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3 AS base

# Triton's Python backend runs the system's python3, so packages go there.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/mplug
COPY requirements.txt requirements-serve.txt requirements-gpu.txt ./
COPY requirements ./requirements
COPY deploy/tracing/requirements.txt tracing.txt

# An engine loads only in the TensorRT that built it: the wheel's has to be the one that the server links.
RUN wanted=$(sed -n 's/^tensorrt-cu13==\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/p' requirements-gpu.txt) \
 && if [ -z "$(find / -xdev -name "libnvinfer.so.$wanted*" -print -quit)" ]; then \
      echo "this image has another TensorRT than requirements-gpu.txt ($wanted):" >&2; \
      find / -xdev -name 'libnvinfer.so.*' >&2; exit 1; \
    fi

# What a served process imports. What the system's own packages have of it, such as PyYAML,
# pip cannot remove: it goes in front of them.
RUN grep --no-filename -E '^(numpy|pillow|av|psutil|pyyaml|tokenizers)==' requirements/*.txt > serve.txt \
 && python3 -m pip install --ignore-installed -r serve.txt -r tracing.txt -r requirements-gpu.txt

RUN useradd --create-home --uid 10001 mplug
# NVIDIA's entry point puts CUDA's forward-compatible libraries in place for drivers older than the image's; a launcher
# that is not its direct successor would never see SIGTERM, hence the exec at its end.
COPY deploy/entrypoint.sh /opt/mplug/entrypoint.sh


FROM base AS serve
COPY mplug ./mplug
COPY clients ./clients
USER mplug
EXPOSE 8000 8001 8002 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8003/health/ready', timeout=4)"]
ENTRYPOINT ["/bin/sh", "/opt/mplug/entrypoint.sh", "python3", "-m", "mplug.server"]
CMD ["/repository", "--host", "0.0.0.0"]


FROM base AS build
# PyTorch only exports and compares here: its build for the CPU does, some GB smaller, if pip is told where that is:
# --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_EXTRA_INDEX_URL
# What the build imports; the rest of requirements.txt is for training and tests. --ignore-installed: the system's pip
# stops at packages of the system's own that it cannot remove.
RUN grep --no-filename -E '^(torch|safetensors|tokenizers|pyyaml|onnx|onnxscript|onnxruntime|openvino|tqdm|numpy|pillow|av)==' \
      requirements/*.txt requirements.txt > build.txt \
 && python3 -m pip install --ignore-installed -r build.txt
COPY . .
USER mplug
ENTRYPOINT ["/bin/sh", "/opt/mplug/entrypoint.sh", "python3", "builders/build.py"]
CMD ["--help"]


FROM python:3.11-slim-bookworm AS cpu
# Triton comes in a wheel here, and links this image's Python 3.11. PIP_EXTRA_INDEX_URL as for `build`.
ARG PIP_EXTRA_INDEX_URL
ENV PYTHONUNBUFFERED=1
WORKDIR /opt/mplug
COPY requirements-serve.txt ./
COPY requirements ./requirements
COPY deploy/tracing/requirements.txt tracing.txt
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r requirements-serve.txt -r tracing.txt \
 && useradd --create-home --uid 10001 mplug
COPY . .
COPY deploy/entrypoint.sh /opt/mplug/entrypoint.sh
USER mplug
EXPOSE 8000 8001 8002 8003
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8003/health/ready', timeout=4)"]
ENTRYPOINT ["/bin/sh", "/opt/mplug/entrypoint.sh", "python3", "-m", "mplug.server"]
CMD ["/repository", "--host", "0.0.0.0"]


FROM python:3.11-slim-bookworm AS gateway
WORKDIR /opt/mplug
COPY deploy/gateway ./deploy/gateway
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r deploy/gateway/requirements.txt \
 && useradd --create-home --uid 10001 mplug
USER mplug
EXPOSE 9000 9001
ENTRYPOINT ["python", "deploy/gateway/run.py", "--host", "0.0.0.0"]


FROM python:3.11-slim-bookworm AS openai
WORKDIR /opt/mplug
COPY deploy/openai ./deploy/openai
COPY clients ./clients
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r deploy/openai/requirements.txt \
 && useradd --create-home --uid 10001 mplug
USER mplug
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=180s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8080/health', timeout=5)"]
ENTRYPOINT ["python", "deploy/openai/run.py", "--host", "0.0.0.0"]
