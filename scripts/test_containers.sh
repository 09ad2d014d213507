#!/usr/bin/env bash
# Runs the deployment of docs/deploy in real containers beside a client (tests/support/containers.py has the checks).
#
# Uses the Docker engine that is running, or starts one for the time of the test. STORAGE_MANAGER_BASE_IMAGE names an
# image with Python that the engine has or can get. By default an image is made of the Debian packages of this machine's
# own sources, and kept in the cache directory. Where the test cannot run, it says why and ends with 77.
set -euo pipefail

skip() {
  printf 'containers: skipped: %s\n' "$1"
  exit 77
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
engine_pid=
made=
work=$(mktemp -d -t storage_manager.XXXXXX)

clean_up() {
  trap - EXIT
  if [[ $made ]]; then docker image rm -f "$made" >/dev/null 2>&1 || true; fi
  if [[ $engine_pid ]]; then
    kill "$engine_pid" 2>/dev/null || true
    wait "$engine_pid" 2>/dev/null || true
    # Unmount what a container left mounted: its files must not be deleted through the mount.
    awk -v work="$work/" 'index($2, work) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l -- || true
  fi
  rm -rf --one-file-system -- "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

answers() { timeout 20 docker info >/dev/null 2>&1; }

start_engine() { # start_engine [OPTION ...]: true when it answers within 30 seconds
  # No bridge and no firewall rules: nothing of the host's network changes, and these containers need none.
  dockerd --data-root "$work/data" --exec-root "$work/run" --pidfile "$work/pid" --host "unix://$work/socket" \
    --bridge none --iptables=false "$@" >"$work/engine.log" 2>&1 &
  engine_pid=$!
  for _ in {1..60}; do
    answers && return 0
    kill -0 "$engine_pid" 2>/dev/null || break
    sleep 0.5
  done
  kill "$engine_pid" 2>/dev/null || true
  wait "$engine_pid" 2>/dev/null || true
  engine_pid=
  return 1
}

make_root() { # make_root FILE: a root directory with Python, as an archive
  local source
  [[ $(id -u) == 0 ]] || skip "only root can make a base image: name one in STORAGE_MANAGER_BASE_IMAGE"
  command -v debootstrap >/dev/null || skip "there is no debootstrap to make a base image with"
  # shellcheck disable=SC2016 # apt-get fills these in
  source=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$codename" '$2 == "main" && $3 == release && ($1 == "Debian" || $1 == "Ubuntu") { print $4; exit }')
  [[ $source ]] || skip "this machine has no source of packages for $codename"
  echo "containers: making a base image of the packages of $codename"
  timeout 400 debootstrap --variant=minbase --include=python3 "$codename" "$work/root" "$source" >"$work/debootstrap.log" 2>&1 ||
    skip "the packages of a base image cannot be had: $(tail -n 1 "$work/debootstrap.log")"
  mkdir -p -- "$(dirname -- "$1")"
  tar --one-file-system --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./usr/share/doc/*' \
    --exclude='./usr/share/locale/*' -C "$work/root" -c . | gzip -1 >"$1.$$"
  mv -- "$1.$$" "$1"
}

command -v docker >/dev/null || skip "there is no docker command"
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || skip "there is no Compose"
if ! answers; then
  command -v dockerd >/dev/null || skip "no Docker engine runs, and there is none to start"
  [[ $(id -u) == 0 ]] || skip "no Docker engine runs, and only root can start one"
  export DOCKER_HOST="unix://$work/socket"
  start_engine || start_engine --storage-driver vfs || skip "no Docker engine can run here: $(tail -n 1 "$work/engine.log")"
fi

base=${STORAGE_MANAGER_BASE_IMAGE:-}
if [[ -z $base ]]; then
  # shellcheck source=/dev/null
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  archive=${XDG_CACHE_HOME:-$HOME/.cache}/storage_manager/base-$codename-$(uname -m).tar.gz
  [[ -s $archive ]] || make_root "$archive"
  base=storage_manager-test-base-$$
  docker import "$archive" "$base" >/dev/null || skip "the engine takes no image"
  made=$base
fi
docker run --rm --network none "$base" python3 -c '' >"$work/run.log" 2>&1 ||
  skip "the engine runs no container of $base: $(tail -n 1 "$work/run.log")"
# Not `exec`: this script must end the engine that it started.
"${PYTHON:-python3}" "$root/tests/support/containers.py" "$base"
