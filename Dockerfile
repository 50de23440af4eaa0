# syntax=docker/dockerfile:1
# docker build -t dalle-server .                        CPU: no torch, 0.44 GB
# docker build -t dalle-server:cuda --build-arg VARIANT=cuda .   NVIDIA GPUs: torch with CUDA
# VARIANT=cluster and cluster-cuda: the same with Ray (docs/deploying-on-ray.md)
FROM python:3.12-slim AS build
ARG VARIANT=cpu
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE THIRD_PARTY_NOTICES.md ./
COPY src ./src
RUN python -m venv /opt/dalle && \
    case "$VARIANT" in cpu) extra='' ;; cuda) extra='[torch]' ;; cluster) extra='[cluster]' ;; \
        cluster-cuda) extra='[cluster,torch]' ;; *) echo "no VARIANT $VARIANT" && exit 1 ;; esac && \
    /opt/dalle/bin/pip install --no-cache-dir -c constraints.txt ".$extra"

FROM python:3.12-slim
ARG VARIANT=cpu
# KubeRay asks Ray for its health by wget.
RUN case "$VARIANT" in cluster*) apt-get update && apt-get install -y --no-install-recommends wget && \
        rm -rf /var/lib/apt/lists/* ;; esac
COPY --from=build /opt/dalle /opt/dalle
RUN useradd --create-home --uid 10001 dalle && install -d -o dalle -g dalle /data
USER dalle
ENV PATH=/opt/dalle/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface \
    DALLE_CACHE_DIR=/data/cache \
    DALLE_DATA_DIR=/data/server \
    DALLE_OUTPUT_DIR=/data/generations \
    DALLE_MODEL_VERSION=nano
VOLUME /data
EXPOSE 8000
# /health answers while the weights load; an orchestrator that must wait for them asks /ready.
HEALTHCHECK --interval=15s --timeout=3s --start-period=5s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# The server drains on SIGTERM for up to 30 s.
STOPSIGNAL SIGTERM
ENTRYPOINT ["dalle-server"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
