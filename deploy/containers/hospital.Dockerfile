# ---- the slow layers: the same lines in every Dockerfile of this folder, so that they are built and stored once ----------
FROM python:3.11-slim-bookworm AS chosen
# PyTorch's own index has builds without CUDA, which make the images small. Empty: PyPI's build, with CUDA's libraries.
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml requirements.lock deploy/development/image_packages.py ./
RUN python image_packages.py pyproject.toml requirements.lock ${PYTORCH_INDEX:+--without-pytorch} > packages.txt \
    && python image_packages.py pyproject.toml requirements.lock --pytorch > pytorch.txt

FROM python:3.11-slim-bookworm AS packages
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY --from=chosen /build/packages.txt /build/pytorch.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /venv \
    && /venv/bin/pip install --no-compile --no-deps --require-hashes --requirement packages.txt \
    && { [ -z "$PYTORCH_INDEX" ] \
        || /venv/bin/pip install --no-compile --no-deps --index-url "$PYTORCH_INDEX" --requirement pytorch.txt; } \
    && /venv/bin/pip uninstall --quiet --yes pip \
    # Headers and tests of libraries are never used; byte code is, or every start would compile again.
    && cd /venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test \
    && find torch/bin -type f ! -name torch_shm_manager -delete \
    && find . -depth -type d \( -name tests -o -name test \) -not -path './torch/*' -exec rm -rf {} + \
    && { python -m compileall -q -j 0 . || true; }

FROM python:3.11-slim-bookworm AS runtime
# The numbers are fixed, so that files in a volume keep their owner when an image is built again.
RUN for user in hospital:10001 relay:10002 server:10003 dealer:10004; do \
        groupadd --gid "${user#*:}" "${user%:*}" \
        && useradd --uid "${user#*:}" --gid "${user%:*}" --no-create-home --home-dir /tmp --shell /usr/sbin/nologin "${user%:*}"; \
    done \
    && usermod --append --groups relay hospital \
    # The volumes that two roles share belong to the one that writes them, whichever role's container is made first.
    && install -d -o server -g server -m 0755 /invitation /grafana \
    && install -d -o dealer -g dealer -m 0755 /deal
COPY --from=packages /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONPATH=/confide PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /confide
ARG COMMIT=unknown
ENV CONFIDE_COMMIT=$COMMIT
COPY pyproject.toml ./
COPY common common
# ---- the role ------------------------------------------------------------------------------------------------------------
FROM runtime
COPY client client
COPY deploy deploy
# Others may pass through the state folder, where the relay's own folder lies, and read nothing else in it.
RUN install -d -o hospital -g hospital -m 0711 /state && install -d -o hospital -g hospital -m 0700 /shard
VOLUME ["/state", "/shard"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 \
    CMD ["setpriv", "--reuid=hospital", "--regid=hospital", "--clear-groups", "--", \
        "python", "-m", "deploy.containers.health", "127.0.0.1:9401", "/state/relay/agent.sock"]
# The supervisor is the user `hospital` and keeps three capabilities, to run the SuperNode as the user `relay`.
ENTRYPOINT ["setpriv", "--reuid=hospital", "--regid=hospital", "--init-groups", \
    "--inh-caps=+setuid,+setgid,+kill", "--ambient-caps=+setuid,+setgid,+kill", "--", \
    "python", "-m", "deploy.containers.hospital_container"]
