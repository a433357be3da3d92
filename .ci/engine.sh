#!/usr/bin/env bash
# engine.sh up     make a Docker engine answer, with the base images of ours at hand; says why not and ends 1 where it cannot
# engine.sh down   stop the engine, if it was this script that started it
#
# A machine with Docker and a registry needs none of this. Continuous integration runs on a bare Debian 12 that reaches
# Debian's and Python's packages but no container registry: there the engine comes from Debian 13's packages (they run on
# Debian 12's libraries), and stand-ins for the base images are made from Debian's packages, under the official names.
set -euo pipefail
state=${CONFIDE_ENGINE_STATE:-/var/tmp/confide-engine}
python_image=python:3.11-slim-bookworm
prometheus_image=prom/prometheus:v2.53.3
pull_seconds=120

say() { printf 'engine: %s\n' "$*" >&2; }
answers() { docker info >/dev/null 2>&1; }
has_image() { docker image inspect "$1" >/dev/null 2>&1; }
mirror() { awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources; }

# apt-get with its own sources and lists, so that the machine's stay as they are.
apt_with_trixie() {
  local key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' from
  from=$(mirror)
  mkdir -p "$state/lists/partial"
  printf 'deb %s %s bookworm main\ndeb %s %s-security bookworm-security main\ndeb %s %s trixie main\n' \
    "$key" "$from" "$key" "$from" "$key" "$from" >"$state/sources.list"
  printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' >"$state/preferences"
  DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$state/lists" -o Dir::Etc::preferences="$state/preferences" \
    -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root "$@"
}

install_engine() {
  command -v dockerd >/dev/null && docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && return
  say "installing Docker from Debian's packages"
  apt_with_trixie update
  # The package would start a daemon of its own.
  local policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f /usr/sbin/policy-rc.d' RETURN
  fi
  apt_with_trixie install -y --no-install-recommends iptables docker.io/trixie docker-cli/trixie docker-compose/trixie \
    docker-buildx/trixie >/dev/null
}

start_engine() {
  # What a killed engine left behind keeps the next one from starting.
  local file
  for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
    [ -s "$file" ] && [ -d "/proc/$(cat "$file")" ] || rm -f "$file"
  done
  setsid nohup dockerd >"$state/dockerd.log" 2>&1 </dev/null &
  echo $! >"$state/dockerd.pid"
  for _ in $(seq 300); do
    answers && return
    kill -0 "$(cat "$state/dockerd.pid")" 2>/dev/null || break
    sleep 0.2
  done
  say "dockerd did not start: $(tail -1 "$state/dockerd.log")"
  return 1
}

stop_engine() {
  [ -s "$state/dockerd.pid" ] || return 0
  local pid
  pid=$(cat "$state/dockerd.pid")
  rm -f "$state/dockerd.pid"
  grep -q '^dockerd' "/proc/$pid/comm" 2>/dev/null || return 0
  kill "$pid"
  for _ in $(seq 150); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.2
  done
}

# root_file_system IMAGE PACKAGES HOOK: a minimal Debian 12 as an image.
root_file_system() {
  mmdebstrap --quiet --mode=root --variant=minbase --include="$2" --aptopt='Apt::Install-Recommends "false"' \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/* "$1"/var/log/*' --customize-hook="$3" \
    bookworm "$state/root.tar" "deb $(mirror) bookworm main" "deb $(mirror) bookworm-updates main" \
    "deb $(mirror)-security bookworm-security main"
  docker import -c 'CMD ["bash"]' "$state/root.tar" "$1" >/dev/null
  rm -f "$state/root.tar"
}

make_python_image() {
  say "no registry answers: making a stand-in for $python_image"
  command -v mmdebstrap >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap >/dev/null; }
  has_image local/python-root || root_file_system local/python-root python3,python3-pip,python3-venv,ca-certificates,netbase,tzdata \
    'ln -s python3 "$1/usr/bin/python"; rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED'
  mkdir -p "$state/python"
  cp /etc/ssl/certs/ca-certificates.crt "$state/python/"     # this machine's, which may know a proxy's authority
  docker build -q -t "$python_image" -f - "$state/python" >/dev/null <<'END'
FROM local/python-root
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
ENV LANG=C.UTF-8 PIP_CERT=/etc/ssl/certs/ca-certificates.crt
CMD ["python3"]
END
}

make_prometheus_image() {
  say "no registry answers: making a stand-in for $prometheus_image"
  local build=$state/prometheus
  rm -rf "$build"
  mkdir -p "$build/bin"
  apt_with_trixie update
  (cd "$build" && apt_with_trixie download prometheus/trixie promtool/trixie)
  for package in "$build"/*.deb; do dpkg -x "$package" "$build/files"; done
  cp "$build/files/usr/bin/prometheus" "$build/files/usr/bin/promtool" "$build/bin/"
  docker build -q -t "$prometheus_image" -f - "$build" >/dev/null <<END
FROM $python_image
COPY bin/ /bin/
RUN mkdir -p /prometheus && chown nobody:nogroup /prometheus
USER nobody
VOLUME ["/prometheus"]
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
END
}

case ${1:-up} in
up)
  mkdir -p "$state"
  if ! answers; then
    if [ "$(id -u)" != 0 ] || ! grep -q 'VERSION_CODENAME=bookworm' /etc/os-release 2>/dev/null; then
      say "no Docker engine answers, and this script installs one on Debian 12 as root only"
      exit 1
    fi
    install_engine && start_engine || exit 1
  fi
  has_image "$python_image" || timeout "$pull_seconds" docker pull -q "$python_image" >/dev/null 2>&1 || make_python_image
  has_image "$prometheus_image" || timeout "$pull_seconds" docker pull -q "$prometheus_image" >/dev/null 2>&1 || make_prometheus_image
  say "$(docker version --format 'Docker {{.Server.Version}}'), $(docker compose version)"
  ;;
down) stop_engine ;;
*)
  say "usage: engine.sh up|down"
  exit 2
  ;;
esac
