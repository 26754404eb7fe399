#!/usr/bin/env bash
# Runs the demo on three Ray nodes, a head and two workers, as it would run on three machines: each node has its own
# address, raylet, object store and CPU, and the two training workers find each other over the network.
#
#   cluster/local-multinode.sh [SETTINGS]    such as --stages visual --run.name try; see python -m groundray.train --help
#
# The exit status is the run's. A first Ctrl-C or SIGTERM lets it write a checkpoint; rerun the same command to resume.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

[[ -x .venv/bin/ray ]] || { echo "there is no Ray in $PWD/.venv: run make setup first" >&2 && exit 2; }

unset RAY_ADDRESS # of another cluster
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # nodes end when the run has, with nothing left to drain
# Ray's own ports are open to the network (it takes 127.0.0.1 for a mistake), and to other users of this machine: whoever
# lacks this token gets nothing there. Its client port is the one that two clusters of a machine would both want.
read -r RAY_AUTH_TOKEN client_port < <(
    python -c 'import secrets, socket; print(secrets.token_hex(32), socket.create_server(("", 0)).getsockname()[1])'
)
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

folder=$(mktemp -d /tmp/groundray.XXXXXX) # short: the paths of sockets, below it, may have 107 characters
started=()
stop() { # what was started here and nothing else: `ray stop` would end every Ray of this machine
    kill "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
    rm -rf "$folder"
}
trap stop EXIT

start() { # NAME ADDRESS OPTIONS...: a Ray node, in a process that ends with it
    local log="$folder/$1.log"
    ray start --block --temp-dir "$folder/$1" --node-ip-address "$2" --object-store-memory 500000000 \
        --min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0 "${@:3}" >"$log" 2>&1 &
    started+=($!)
    until grep -qs 'Ray runtime started' "$log"; do
        kill -0 $! 2>/dev/null || { cat "$log" && exit 1; }
        sleep 0.2
    done
}

start head 127.0.0.10 --head --port 0 --num-cpus 0 --include-dashboard false --ray-client-server-port "$client_port"
RAY_ADDRESS=$(<"$folder/head/ray_current_cluster")
export RAY_ADDRESS
# one CPU each: of two training workers with 0.7, one fits on a node, and Ray Data has the rest
start worker-1 127.0.0.11 --address "$RAY_ADDRESS" --num-cpus 1
start worker-2 127.0.0.12 --address "$RAY_ADDRESS" --num-cpus 1

# In a session of its own, so that a terminal's Ctrl-C comes to it once, from here: as SIGTERM, since bash has what it
# starts in the background ignore SIGINT.
setsid python -m groundray.train --config demo --run.name multinode --scaling.cpus_per_worker 0.7 "$@" &
run=$!
trap 'kill $run || true' INT TERM

# tells where Ray Train has put the workers, whenever it has
{
    until log=$(ls "$folder"/head/session_latest/logs/train/ray-train-sys-controller-*.log 2>/dev/null); do sleep 1; done
    tail --pid=$run --follow --lines=+1 "$log" |
        grep --line-buffered -oE 'ip=[0-9.]+, pid=[0-9]+\) world_rank=[0-9]+' |
        sed -uE 's/ip=(.*), pid=.*rank=(.*)/worker \2 runs on \1/'
} &
started+=($!)

while :; do
    status=0
    wait $run || status=$? # a signal interrupts it
    kill -0 $run 2>/dev/null || exit $status
done
