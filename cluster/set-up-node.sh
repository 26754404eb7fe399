#!/usr/bin/env bash
# Sets a machine of a cluster up as `make setup` does a laptop, from the same lock: all nodes must have one version of Ray
# and of Python. The launcher files run it on each node.
set -euo pipefail
cd "$(dirname "$0")/.."

# the two that a cloud's Ubuntu lacks; a machine that has just started may still be installing for itself
if ! command -v make >/dev/null || ! python3 -c 'import ensurepip' 2>/dev/null; then
    sudo apt-get --option DPkg::Lock::Timeout=300 --quiet update
    sudo apt-get --option DPkg::Lock::Timeout=300 --quiet --yes install make python3-venv
fi
make setup

# Whatever Ray's launcher runs, `ray exec` and `ray attach` too, it runs in an interactive shell.
cat >~/.groundray <<END
export PATH="$PWD/.venv/bin:\$PATH"
# Ray's ports open for those who have the token alone.
export RAY_AUTH_MODE=token
# Else a driver that uv has started has its environment built again on each worker.
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
# \`ray job stop\` gives a run three seconds for its checkpoint otherwise.
export RAY_JOB_STOP_WAIT_TIME_S=120
END
grep -qsF .groundray ~/.bashrc || echo 'source ~/.groundray' >>~/.bashrc
