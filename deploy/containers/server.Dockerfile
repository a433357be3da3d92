ARG ROLE=server
# ---- the slow layers: the same lines in every Dockerfile of this folder but for the first ---------------------------------
# By its digest for a release: docs/airgapped.md.
ARG BASE=python:3.11-slim-bookworm
FROM $BASE AS chosen
ARG ROLE
# PyTorch's own index has builds without CUDA, which make the images small. Empty: PyPI's build, with CUDA's libraries.
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY pyproject.toml requirements.lock deploy/development/image_packages.py ./
RUN python image_packages.py pyproject.toml requirements.lock --role $ROLE ${PYTORCH_INDEX:+--without-pytorch} > packages.txt \
    && python image_packages.py pyproject.toml requirements.lock --role $ROLE --pytorch > pytorch.txt

FROM $BASE AS packages
ARG PYTORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
COPY --from=chosen /build/packages.txt /build/pytorch.txt ./
# strip takes the symbols for debuggers out of libraries, but not out of those that a wheel has brought along: they have
# been rearranged, and strip can break them.
RUN apt-get update -qq && apt-get install -qq --yes --no-install-recommends binutils > /dev/null
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /venv \
    && /venv/bin/pip install --no-compile --no-deps --require-hashes --requirement packages.txt \
    && { [ -z "$PYTORCH_INDEX" ] || [ ! -s pytorch.txt ] \
        || /venv/bin/pip install --no-compile --no-deps --index-url "$PYTORCH_INDEX" --requirement pytorch.txt; } \
    && /venv/bin/pip uninstall --quiet --yes pip setuptools \
    # Headers, sources and tests of libraries are never used; byte code is, or every start would compile again. Roles
    # without PyTorch keep that of what they import, which their last step writes.
    && cd /venv/lib/python3.11/site-packages \
    && rm -rf torch/include torch/share torch/test \
    && { [ ! -d torch/bin ] || find torch/bin -type f ! -name torch_shm_manager -delete; } \
    && find . -depth -type d \( -name tests -o -name test \) -not -path './torch/*' -exec rm -rf {} + \
    && find . -name '*.so' -not -path './*.libs/*' -not -path './torch*' -not -path './nvidia/*' -not -path './triton/*' \
        -exec strip --strip-unneeded {} + \
    && find . \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' \) -not -path './torch*' \
        -not -path './triton/*' -not -path './nvidia/*' -delete \
    && find . -name '*.a' -delete \
    && rm -rf pillow.libs/libavif* PIL/_avif*.so Crypto/SelfTest numpy/_core/_simd*.so numpy/_core/*_tests*.so \
    # Without Opacus, SciPy is there for statistics, optimisation and integration alone. Its copy of Fortran's library is
    # NumPy's.
    && { [ -s /build/pytorch.txt ] || (cd scipy && rm -rf cluster datasets differentiate fftpack io misc odr signal); } \
    && for library in numpy.libs/*; do \
        [ ! -e "scipy.libs/${library#*/}" ] || ln -sf "../$library" "scipy.libs/${library#*/}"; done \
    # Figures are PNG files: of the fonts' library matplotlib then needs the list of glyphs' names alone.
    && (cd matplotlib/mpl-data && rm -rf sample_data fonts/afm fonts/pdfcorefonts) \
    && find fontTools -mindepth 1 -maxdepth 1 -type d ! -name misc -exec rm -rf {} + \
    && find fontTools/misc -name '*.so' -delete \
    && { [ ! -s /build/pytorch.txt ] || python -m compileall -q -j 0 . || true; }

FROM $BASE AS runtime
# The numbers are fixed, so that files in a volume keep their owner when an image is built again.
RUN for user in hospital:10001 relay:10002 server:10003 dealer:10004; do \
        groupadd --gid "${user#*:}" "${user%:*}" \
        && useradd --uid "${user#*:}" --gid "${user%:*}" --no-create-home --home-dir /tmp --shell /usr/sbin/nologin "${user%:*}"; \
    done \
    && usermod --append --groups relay hospital \
    # The volumes that two roles share belong to the one that writes them, whichever role's container is made first.
    && install -d -o server -g server -m 0755 /invitation /grafana \
    && install -d -o dealer -g dealer -m 0755 /deal \
    && install -d -o hospital -g hospital -m 0755 /first-model
COPY --from=packages /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONPATH=/confide PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /confide
COPY --chmod=0755 pyproject.toml ./
COPY --chmod=0755 common common
# ---- the role ------------------------------------------------------------------------------------------------------------
FROM runtime
COPY --chmod=0755 client client
COPY --chmod=0755 server server
COPY --chmod=0755 deploy deploy
# A library that is missing, or was built for another machine, ends the build and not the first start.
RUN PYTHONDONTWRITEBYTECODE= python -c "import server.app, server.flower.superexec, server.flower.superlink, server.metrics" \
    && PYTHONDONTWRITEBYTECODE= python -c "import deploy.cli, deploy.containers.server_container, server.members.enrolment" \
    && python -c "import deploy.results.report, deploy.results.plots, matplotlib.backends.backend_agg, scipy.stats"
ARG COMMIT=unknown
ARG VERSION=unknown
ENV CONFIDE_COMMIT=$COMMIT
LABEL org.opencontainers.image.title="Confide server" \
    org.opencontainers.image.description="The server of a consortium: adds masked vectors, and never sees one." \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$COMMIT
RUN install -d -o server -g server -m 0700 /state
USER server
VOLUME ["/state"]
EXPOSE 9092 9093
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-m", "deploy.containers.health", "127.0.0.1:9093"]
ENTRYPOINT ["python", "-m", "deploy.containers.server_container"]
