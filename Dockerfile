# A detector that answers over HTTP, on CPU wheels of torch. Put detector.safetensors and the weights of its model into
# the folder that is mounted:
#
#     docker build --tag opnp .
#     docker run --rm --publish 127.0.0.1:8000:8000 --volume "$PWD/served:/served:ro" opnp
#
# EXTRAS says which models it can serve: vision for timm and torchvision, hf for transformers.
FROM python:3.12-slim

ARG EXTRAS=serve,vision

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# First, and from an index of CPU wheels, so that nothing below asks for those with CUDA.
RUN pip install --index-url https://download.pytorch.org/whl/cpu "torch>=2.6" "torchvision>=0.21"

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install ".[${EXTRAS}]" && rm -rf /source

RUN useradd --create-home --uid 1000 opnp
USER opnp
WORKDIR /served
EXPOSE 8000

HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]

ENTRYPOINT ["opnp", "serve"]
CMD ["detector.safetensors", "--host", "0.0.0.0", "--port", "8000"]
