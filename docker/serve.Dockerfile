# syntax=docker/dockerfile:1
# Scores without torch, through ONNX Runtime. Build from the root of the repository:
#   docker build -f docker/serve.Dockerfile -t tabdiff-serve .                                  for CPUs
#   docker build -f docker/serve.Dockerfile -t tabdiff-serve-gpu --build-arg RUNTIME=gpu .      for NVIDIA GPUs
FROM python:3.12-slim-bookworm AS build
ARG RUNTIME=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/tabdiff
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tabdiff ./tabdiff
COPY flows ./flows
COPY onnx_export ./onnx_export
COPY dashboard ./dashboard
RUN /opt/tabdiff/bin/pip install -c constraints.txt ".[${RUNTIME},flows,db,dashboard]" \
    && ! /opt/tabdiff/bin/python -c 'import torch' 2>/dev/null

FROM python:3.12-slim-bookworm
RUN groupadd --gid 10001 tabdiff && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tabdiff \
    && install -d -o 10001 -g 10001 -m 0700 /workspace
COPY --from=build /opt/tabdiff /opt/tabdiff
COPY docker/health.py /opt/health.py
ENV PATH=/opt/tabdiff/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    TABDIFF_HOME=/workspace OMP_NUM_THREADS=1 DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
USER 10001:10001
WORKDIR /workspace
VOLUME /workspace
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 CMD ["python", "/opt/health.py", "workspace"]
ENTRYPOINT ["tabdiff"]
CMD ["--help"]
