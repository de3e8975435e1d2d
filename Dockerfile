# backupd as a container image. Any Debian 12 will do as the base, so it is an argument; pin yours by digest:
#   docker build --build-arg BASE=debian:12-slim@sha256:… -t backupd .
# Behind a proxy with a certificate authority of its own, mount its bundle and pass --build-arg PIP_CERT=/path/to/bundle.crt
ARG BASE=debian:12-slim

# ---- build: a virtual environment from the hashed locks, then backupd's own wheel, built without a network
FROM ${BASE} AS build
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3-venv
WORKDIR /build
# The locks come before the source: a change of the source then reuses this layer.
COPY requirements.lock requirements-build.lock ./
RUN python3 -m venv /opt/backupd \
    && /opt/backupd/bin/pip install --require-hashes -r requirements.lock \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY backupd backupd
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /opt/wheel . \
    && /opt/backupd/bin/pip install --no-deps --no-index /opt/wheel/*.whl \
    && /opt/backupd/bin/python -m compileall -q /opt/backupd/lib \
    && /opt/backupd/bin/pip uninstall --yes --quiet pip setuptools

# ---- the image: Python, gpg, the PostgreSQL client programs, and the environment. No compiler, no pip, no package lists.
FROM ${BASE}
LABEL org.opencontainers.image.title="backupd" \
      org.opencontainers.image.description="Sealed, recorded and tested backups of PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gnupg postgresql-client python3 tzdata \
    && rm -rf /var/lib/apt/lists/* \
    # A fixed number, so that Kubernetes can check runAsNonRoot and volumes can be given the right owner.
    && groupadd --gid 10001 backupd \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/backupd --create-home --shell /usr/sbin/nologin backupd \
    && chmod 0700 /var/lib/backupd
COPY --from=build /opt/backupd /opt/backupd
# Unbuffered: a log line must not be lost when the container is killed. The environment is read-only, so no bytecode is written.
ENV PATH=/opt/backupd/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BACKUPD_CONFIG=/etc/backupd/backupd.toml
USER 10001:10001
WORKDIR /var/lib/backupd
# One command, one run: its exit code is its health, so there is nothing to poll.
HEALTHCHECK NONE
ENTRYPOINT ["backupd"]
CMD ["--help"]
