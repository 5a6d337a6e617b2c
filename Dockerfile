# Incident Relay. `make image` builds this with Docker or Buildah; CONTRIBUTING.md says how behind a proxy that inspects TLS.
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /build
# The base's pip installs into an environment that never holds one itself.
RUN python -m venv --without-pip /opt/relay && python -m venv --without-pip /opt/build
COPY requirements.lock requirements-build.lock ./
# The secret `ca` is a bundle of certificates to trust while downloading; without it the base's own are.
RUN --mount=type=secret,id=ca \
    if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi && \
    export PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ONLY_BINARY=:all: PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 && \
    pip --python /opt/build/bin/python install --require-hashes --requirement requirements-build.lock && \
    pip --python /opt/relay/bin/python install --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY relay relay
# CEL's extensions, which no rule can name, and its own tests are most of its size. Bytecode is written here, once: at run
# time nothing can be.
RUN /opt/build/bin/hatchling build --target wheel && \
    pip --python /opt/relay/bin/python install --no-cache-dir --no-compile --no-deps --no-index dist/*.whl && \
    rm -rf /opt/relay/lib/python3*/site-packages/cel_expr_python/ext /opt/relay/lib/python3*/site-packages/bazel-project && \
    python -m compileall -q --invalidation-mode unchecked-hash /opt/relay/lib

FROM python:${PYTHON}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Incident Relay" \
      org.opencontainers.image.description="Every new or changed ESET incident: exactly once in Kafka, on time in Slack, Teams and webhooks, and never lost." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/relay /opt/relay
# No installer stays. The official base comes without bytecode of the standard library; the import writes that of the parts
# in use, so that no start has to compile them again.
RUN pip uninstall --yes --quiet --root-user-action=ignore pip && \
    rm -rf "$(python -c 'import pathlib, ensurepip; print(pathlib.Path(ensurepip.__file__).parent)')" && \
    /opt/relay/bin/python -c 'import relay.app, relay.check, relay.cli, relay.demo, relay.rules, relay.schema, relay.terminal' && \
    mkdir --parents /etc/relay && \
    install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/relay
ENV PATH=/opt/relay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RELAY_CONFIG=/etc/relay/relay.yaml
USER 10001:10001
WORKDIR /var/lib/relay
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["relay"]
CMD ["run"]
