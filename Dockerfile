# vllm-diagnose in a small image: `docker build -t vllm-diagnose . && docker run --rm -i vllm-diagnose logs - < server.log`
# It holds no vLLM: logs and addresses are given to it.
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/vllm-diagnose
COPY constraints.txt .
RUN /opt/vllm-diagnose/bin/pip install --quiet --require-hashes -r constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY knowledge knowledge
COPY tools tools
COPY assistant assistant
# The knowledge is compiled before the project is built, so that the wheel carries it; what only builds and checks goes.
RUN PYTHONPATH=. /opt/vllm-diagnose/bin/python -m knowledge.compiler \
 && /opt/vllm-diagnose/bin/pip install --quiet --no-deps --no-build-isolation . \
 && /opt/vllm-diagnose/bin/pip uninstall --quiet --yes \
      editables hatchling import-linter grimp mypy pytest ruff trove-classifiers types-pyyaml uv

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin diagnose
COPY --from=build /opt/vllm-diagnose /opt/vllm-diagnose
ENV PATH=/opt/vllm-diagnose/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/diagnose
ENTRYPOINT ["vllm-diagnose"]
CMD ["--help"]
