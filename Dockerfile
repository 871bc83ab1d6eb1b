# gpugate in a container: slim, not root, no compiler left. `make image` builds and tries it.
# Through an index or a proxy of your own: docker build --secret id=pip,src=pip.conf .
ARG BASE=python:3.13-slim
FROM ${BASE} AS build
ARG PLUGINS="plugins/gpugate-runpod plugins/gpugate-vastai plugins/gpugate-demo"
WORKDIR /src
COPY . .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/gpugate \
    && /opt/gpugate/bin/pip install --no-cache-dir --disable-pip-version-check ".[telegram,uvloop,metrics,notify,otel]" ${PLUGINS} \
    && /opt/gpugate/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
LABEL org.opencontainers.image.title="gpugate" \
      org.opencontainers.image.description="An Ollama endpoint that is always on, in front of a GPU pod that is not" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/gpugate /opt/gpugate
RUN mkdir -p /var/lib/gpugate /etc/gpugate && chown 10001:10001 /var/lib/gpugate
ENV PATH=/opt/gpugate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    STATE_DIRECTORY=/var/lib/gpugate \
    HOME=/var/lib/gpugate \
    GPUGATE_SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/gpugate
VOLUME /var/lib/gpugate
EXPOSE 11434
# An orderly end stops the pod: give it time, `docker stop -t 120` or stop_grace_period.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python3", "-c", \
    "import os, urllib.request as http; \
    http.urlopen(f'http://127.0.0.1:{os.environ.get(\"GPUGATE_SERVER__PORT\", 11434)}/api/v1/health', timeout=4)"]
ENTRYPOINT ["gpugate"]
CMD ["serve"]
