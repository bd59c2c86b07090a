# syntax=docker/dockerfile:1
# Everything: fits, scores, flows, the Prefect server. Build from the root of the repository:
#   docker build -f docker/train.Dockerfile -t tabdiff-train .
# TORCH_INDEX may name an index that serves the build of PyTorch that you want (CPU or a version of CUDA).
FROM python:3.12-slim-bookworm AS build
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/tabdiff
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tabdiff ./tabdiff
COPY flows ./flows
COPY onnx_export ./onnx_export
COPY dashboard ./dashboard
RUN if [ -n "$TORCH_INDEX" ]; then set -- --extra-index-url "$TORCH_INDEX"; else set --; fi \
    && /opt/tabdiff/bin/pip install "$@" -c constraints.txt '.[train,flows,db]'

FROM python:3.12-slim-bookworm
# A number, so that an orchestrator can see that it is not root. No shell, no home that could be written to.
RUN groupadd --gid 10001 tabdiff && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin tabdiff \
    && install -d -o 10001 -g 10001 -m 0700 /workspace
COPY --from=build /opt/tabdiff /opt/tabdiff
COPY docker/health.py /opt/health.py
ENV PATH=/opt/tabdiff/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    TABDIFF_HOME=/workspace OMP_NUM_THREADS=1 DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /workspace
VOLUME /workspace
HEALTHCHECK --interval=30s --timeout=10s --start-period=90s --retries=3 CMD ["python", "/opt/health.py", "workspace"]
ENTRYPOINT ["tabdiff"]
CMD ["--help"]
