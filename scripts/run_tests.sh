#!/usr/bin/env bash
# Runs the test suite in a virtual environment of its own. PYTHON names the Python. Without arguments it runs the whole
# suite, with a sample of each long search; with --thorough, the searches to their ends. Other arguments go to pytest.
set -euo pipefail

fail() {
  printf 'run_tests.sh: %s\n' "$1" >&2
  exit 1
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
command -v -- "$python" >/dev/null || fail "$python is not installed: install Python 3.9 or newer, or set PYTHON to one"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 9))') ||
  fail "$python is older than Python 3.9: install a newer one, or set PYTHON to one"

venv=$root/.venv/$version
if ! "$venv/bin/python" -c 'import pytest' 2>/dev/null; then
  rm -rf -- "$venv"
  "$python" -m venv "$venv" || fail "cannot make a virtual environment: install the venv module (on Debian: python3-venv)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'pytest>=7.4,<10' ||
    fail "cannot install pytest: check the network, or install pytest into $venv by hand"
fi
cd -- "$root"
# Bytecode is made once, not by each of the thousands of processes that the tests start.
unset PYTHONDONTWRITEBYTECODE
"$venv/bin/python" -m compileall -q storage_manager
case "$*" in
"" | --thorough) exec "$venv/bin/python" tests/support/parallel.py "$@" ;;
*) exec "$venv/bin/python" -m pytest "$@" ;;
esac
