#!/usr/bin/env bash
# Runs storage_manager with the paths and settings of an environment file.
#
#   storage_manager.sh [--env PROD|TEST] [--env-file FILE] COMMAND [ARGUMENT ...]
#
# Without --env, settings of the environment win over those of the file. With --env, the paths of the file win.

# Up to here any shell may read it. -p: no BASH_ENV, no functions, options or CDPATH of the caller's.
case "${BASH_VERSION:+bash} $-" in bash*p*) ;; *)
  if command -v bash >/dev/null; then exec bash -p -- "$0" "$@"; fi
  echo "storage_manager.sh: bash is not installed: install it, or run storage_manager.pyz itself" >&2 && exit 1 ;;
esac
set -euo pipefail
trap '' USR1 # it wakes a loop, and one that has yet to begin needs no waking

fail() { printf 'storage_manager.sh: %s\n' "$2" >&2 && exit "$1"; } # fail EXIT_CODE MESSAGE
here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")") && root=$(dirname -- "$here")
prefix=${STORAGE_MANAGER_ENV_PREFIX:-GOFR_DIG}
[[ $prefix =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] ||
  fail 1 "STORAGE_MANAGER_ENV_PREFIX is '$prefix', which cannot begin a variable's name: correct or unset it"
env_file=$here/project.env env_name=
while (($#)); do case $1 in
  --env | --env-file)
    (($# > 1)) || fail 64 "$1 needs a value: --env PROD|TEST, --env-file FILE"
    [[ $1 == --env ]] && env_name=${2:-empty} || env_file=$2
    shift 2 ;;
  --env=*) env_name=${1#*=} && env_name=${env_name:-empty} && shift ;;
  --env-file=*) env_file=${1#*=} && shift ;;
  *) break ;;
esac; done
case $env_name in '' | PROD | TEST) ;; *) fail 64 "--env is '$env_name': it must be PROD or TEST" ;; esac
(($#)) || fail 64 "a command is missing, such as stats, prune-size or run-loop (see --help)"
[[ " $* " != *" --env"[\ =]* ]] || fail 64 "--env stands before the command: storage_manager.sh --env PROD $1 ..."
[[ $1 != --help && $1 != -h ]] || sed -n '4,6s/^# *//p' -- "${BASH_SOURCE[0]}" >&2
# It is run: nobody else may write or replace it. (A name without a slash would be looked for in the PATH.)
[[ $env_file == /* ]] || env_file=./$env_file
[[ -f $env_file ]] ||
  fail 1 "the environment file $env_file does not exist: copy $here/project.env.example there, or name one with --env-file"
[[ -r $env_file ]] || fail 1 "the environment file $env_file is not readable: check its permissions"
for path in "$env_file" "$(dirname -- "$(readlink -f -- "$env_file")")"; do
  read -r owner mode < <(stat -L -c '%u %a' -- "$path")
  [[ $owner == 0 || $owner == "$EUID" ]] || fail 1 "$path belongs to user $owner, and $env_file is run: chown it"
  [[ $mode =~ [0145]$ || -d $path && -k $path ]] || fail 1 "anybody may write $path, and $env_file is run: chmod o-w it"
done
declare -A settled
# The file runs in a shell of its own: it cannot change a variable of this one, and an error ends it at once.
read_env() { # read_env ARGUMENT_FOR_ENV ...: `found` is `ok` and the environment that the file leaves; `store`
  # shellcheck disable=SC2016 # the inner shell is to expand it
  mapfile -d '' -t found < <(env "$@" bash -p -c \
    'exec 3>&1 >&2; set -ae; . "$1"; set +ae; printf "ok\0" >&3; command -p env -0 >&3' storage_manager.sh "$env_file")
  [[ ${found[0]:-} == ok ]] || fail 1 "the environment file $env_file failed: see the message above and correct it"
  settled=() && for pair in "${found[@]:1}"; do settled[${pair%%=*}]=${pair#*=}; done
  data=${settled[${prefix}_DATA_DIR]:-} storage=${settled[${prefix}_STORAGE]:-${settled[${prefix}_STORAGE_DIR]:-}}
  store=${storage:-${data:+$data/storage}} environment=${settled[${prefix}_ENV]:-TEST}
}
[[ " $* " == *" --storage-dir"[\ =]* || " $* " == *" --data-root"[\ =]* ]] && named=' ' || named=
if [[ $env_name ]]; then
  # --env means the store that the file alone names. What an earlier reading left here must not lead to another one.
  read_env -i PATH="$PATH" HOME="${HOME:-/}" "${prefix}_ENV=$env_name" && intended=$store
  read_env -u "${prefix}_STORAGE" -u "${prefix}_STORAGE_DIR" -u "${prefix}_DATA_DIR" "${prefix}_ENV=$env_name"
  [[ $environment == "$env_name" ]] ||
    fail 1 "$env_file sets ${prefix}_ENV=$environment although --env $env_name was given: let it say \${${prefix}_ENV:-TEST}"
  [[ $named || $store == "$intended" ]] ||
    fail 1 "--env $env_name means ${intended:-no store}, but with what is set here $env_file names ${store:-none}: unset the variables that it uses, or give --storage-dir"
else
  read_env
fi
[[ $environment == PROD || $environment == TEST ]] || fail 1 "${prefix}_ENV is '$environment': set it to PROD or TEST"
options=(--gofr-dig-env "$environment")
if [[ ! $named ]]; then
  [[ $store ]] || fail 1 "neither ${prefix}_STORAGE nor ${prefix}_DATA_DIR is set: set one in $env_file, or give --storage-dir"
  [[ ! $data ]] || options+=(--data-root "$data")
  [[ ! $storage ]] || options+=(--storage-dir "$storage")
  # Only the project's own default store is created here. Any other directory must exist already.
  [[ $store != "$root/data/"* ]] || mkdir -p -- "$store" || fail 1 "cannot create $store: check its permissions"
fi
[[ ! -t 2 ]] || printf 'storage_manager.sh: %s\n' "$environment${named:-, $store}" >&2
python=${settled[PYTHON]:-python3}
command -v -- "$python" >/dev/null || fail 1 "$python is not installed: install Python 3.9 or newer, or set PYTHON to one"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
  fail 1 "$python is older than Python 3.9: install a newer one, or set PYTHON to one"
archive=${settled[STORAGE_MANAGER_PYZ]:-}
if [[ ! $archive && -f $root/build_zipapp.py ]]; then
  archive=$root/dist/storage_manager.pyz
  # The second line of the archive is the digest of its sources: a deployment may keep times, contents tell.
  digest=$(cd -- "$root" && find build_zipapp.py storage_manager -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum)
  if [[ -f $archive ]]; then { read -r _ && read -r _ _ built; } <"$archive" || true; fi
  [[ ${built:-} == "${digest%% *}" ]] ||
    "$python" "$root/build_zipapp.py" --precompile --output "$archive" >&2 || fail 1 "cannot build $archive: see above"
elif [[ ! $archive ]]; then
  archive=$root/dist/storage_manager.pyz && [[ -f $archive ]] || archive=$here/storage_manager.pyz
fi
[[ -f $archive ]] || fail 1 "the archive $archive does not exist: build it with build_zipapp.py, or set STORAGE_MANAGER_PYZ"
# Not by `env -i NAME=VALUE ...`: everybody on the host may read arguments, and there are secrets among the settings.
run='import contextlib, os, sys; fd, pid = map(int, sys.argv[1:3]); env = os.fdopen(fd, "rb").read().split(b"\0")
with contextlib.suppress(ChildProcessError): os.waitpid(pid, 0) # printf, unless bash has seen its end
os.execvpe(sys.argv[3], sys.argv[3:], dict(pair.split(b"=", 1) for pair in env if pair))'
exec {from}< <(printf '%s\0' "${found[@]:1}")
exec "$python" -ISc "$run" "$from" "$!" "$python" "$archive" "${options[@]}" "$@"
