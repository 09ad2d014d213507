#!/usr/bin/env bash
# Runs storage_manager with the paths and settings of an environment file.
#
#   storage_manager.sh [--env PROD|TEST] [--env-file FILE] COMMAND [ARGUMENT ...]
#
# Without --env, settings of the environment win over those of the file. With --env, the paths of the file win.
set -euo pipefail

fail() { # fail EXIT_CODE MESSAGE
  printf 'storage_manager.sh: %s\n' "$2" >&2
  exit "$1"
}

here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")
root=$(dirname -- "$here")
prefix=${STORAGE_MANAGER_ENV_PREFIX:-GOFR_DIG}
[[ $prefix =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
  fail 1 "STORAGE_MANAGER_ENV_PREFIX is '$prefix', which cannot begin a variable's name: correct or unset it"
env_file=$here/project.env
env_name=

while (($#)); do
  case $1 in
    --env | --env-file)
      (($# > 1)) || fail 64 "$1 needs a value: --env PROD|TEST, --env-file FILE"
      [[ $1 == --env ]] && env_name=${2:-empty} || env_file=$2
      shift 2
      ;;
    --env=*) env_name=${1#*=} && env_name=${env_name:-empty} && shift ;;
    --env-file=*) env_file=${1#*=} && shift ;;
    *) break ;;
  esac
done
case $env_name in '' | PROD | TEST) ;; *) fail 64 "--env is '$env_name': it must be PROD or TEST" ;; esac
(($#)) || fail 64 "a command is missing: list, stats, check, purge, prune-size, run-loop or health (see --help)"

# --env is set before the file is read, so that the file chooses the paths of that environment. Paths that an earlier
# reading left in the caller's environment must not hide them.
if [[ $env_name ]]; then
  export "${prefix}_ENV=$env_name"
  unset "${prefix}_STORAGE" "${prefix}_STORAGE_DIR" "${prefix}_DATA_DIR"
fi
[[ -f $env_file ]] ||
  fail 1 "the environment file $env_file does not exist: copy $here/project.env.example there, or name one with --env-file"
[[ -r $env_file ]] || fail 1 "the environment file $env_file is not readable: check its permissions"
[[ $(stat -L -c %a -- "$env_file") =~ [2367]$ ]] &&
  fail 1 "anybody may write the environment file $env_file, and its contents are run: chmod o-w it"
set -a +u
# shellcheck source=scripts/project.env
source "$env_file" || fail 1 "the environment file $env_file failed: see the message above and correct it"
set +a -u

name=${prefix}_ENV
environment=${!name:-TEST}
[[ -z $env_name || $environment == "$env_name" ]] ||
  fail 1 "$env_file sets $name=$environment although --env $env_name was given: let it say \${$name:-$environment}"
[[ $environment == PROD || $environment == TEST ]] || fail 1 "$name is '$environment': set it to PROD or TEST"

options=(--gofr-dig-env "$environment")
if [[ " $* " != *" --storage-dir"[\ =]* && " $* " != *" --data-root"[\ =]* ]]; then
  data=${prefix}_DATA_DIR storage=${prefix}_STORAGE other=${prefix}_STORAGE_DIR
  data=${!data:-} storage=${!storage:-${!other:-}}
  [[ $data || $storage ]] ||
    fail 1 "neither ${prefix}_STORAGE nor ${prefix}_DATA_DIR is set: set one in $env_file, or give --storage-dir"
  [[ $data ]] && options+=(--data-root "$data")
  [[ $storage ]] && options+=(--storage-dir "$storage")
  # Only the project's own default store is created here. Any other directory must exist already.
  storage=${storage:-$data/storage}
  [[ $storage != "$root/data/"* ]] || mkdir -p -- "$storage" || fail 1 "cannot create $storage: check its permissions"
fi

python=${PYTHON:-python3}
command -v -- "$python" >/dev/null || fail 1 "$python is not installed: install Python 3.9 or newer, or set PYTHON to one"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
  fail 1 "$python is older than Python 3.9: install a newer one, or set PYTHON to one"

archive=${STORAGE_MANAGER_PYZ:-$root/dist/storage_manager.pyz}
if [[ -z ${STORAGE_MANAGER_PYZ:-} ]]; then
  if [[ -f $root/build_zipapp.py ]]; then
    sources=("$root/storage_manager" "$root/build_zipapp.py")
    if [[ ! -f $archive || $(find "${sources[@]}" -name __pycache__ -prune -o -newer "$archive" -print -quit) ]]; then
      "$python" "$root/build_zipapp.py" --precompile --output "$archive" >&2 || fail 1 "cannot build $archive: see above"
    fi
  elif [[ ! -f $archive ]]; then
    archive=$here/storage_manager.pyz
  fi
fi
[[ -f $archive ]] || fail 1 "the archive $archive does not exist: build it with build_zipapp.py, or set STORAGE_MANAGER_PYZ"
exec "$python" "$archive" "${options[@]}" "$@"
