# vllm-diagnose in a small image, for x86-64 and 64-bit Arm:
#   docker build -t vllm-diagnose .
#   docker run --rm -i vllm-diagnose logs - < server.log
#   docker run --read-only --tmpfs /tmp -v state:/var/lib/vllm-diagnose -p 8080:8080 vllm-diagnose serve --host 0.0.0.0
# It holds no vLLM: logs and addresses are given to it. To pin the base to its content, give its digest:
#   docker build --build-arg PYTHON=python:3.12-slim-bookworm@sha256:... .
ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
COPY constraints.txt .
# Every file against its hash, into an environment that is thrown away: what only builds and checks stays in it.
RUN python -m venv /opt/all && /opt/all/bin/pip install --quiet --require-hashes -r constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY knowledge knowledge
COPY tools tools
COPY assistant assistant
# The knowledge is compiled before the wheel is built, so that the wheel carries it. The running environment then gets
# what the project asks for, in the locked versions and nothing else, and bytecode for all of it: the root is read-only.
RUN PYTHONPATH=. /opt/all/bin/python -m knowledge.compiler \
 && /opt/all/bin/python -m hatchling build -t wheel -d /wheel \
 && python -m venv --without-pip /opt/vllm-diagnose \
 && /opt/all/bin/uv pip compile pyproject.toml --extra postgres --extra telemetry --constraints constraints.txt \
      --generate-hashes --no-header --quiet -o /run.txt \
 && /opt/all/bin/pip --python /opt/vllm-diagnose/bin/python install --quiet --no-compile --require-hashes -r /run.txt \
 && /opt/all/bin/pip --python /opt/vllm-diagnose/bin/python install --quiet --no-compile --no-deps /wheel/*.whl \
 && /opt/vllm-diagnose/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/vllm-diagnose/lib

FROM ${PYTHON}
LABEL org.opencontainers.image.title="vllm-diagnose" org.opencontainers.image.licenses="Apache-2.0"
# Neither a shell's helpers for installing nor a writable place is needed to run.
RUN rm -rf /usr/local/lib/python3.12/ensurepip /usr/local/lib/python3.12/site-packages/pip* /usr/local/bin/pip* \
 && mkdir -p /var/lib/vllm-diagnose && chown 65532:65532 /var/lib/vllm-diagnose && chmod 700 /var/lib/vllm-diagnose
COPY --from=build /opt/vllm-diagnose /opt/vllm-diagnose
ENV PATH=/opt/vllm-diagnose/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/var/lib/vllm-diagnose XDG_STATE_HOME=/var/lib
USER 65532:65532
WORKDIR /var/lib/vllm-diagnose
VOLUME /var/lib/vllm-diagnose
EXPOSE 8080
# Only a server can be asked; for a single command the check comes too late to matter.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", \
  "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["vllm-diagnose"]
CMD ["--help"]
