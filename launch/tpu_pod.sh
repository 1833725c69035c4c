#!/usr/bin/env bash
# Trains on a Cloud TPU pod slice: creates it, sets it up, runs on all workers, shows the log, deletes it.
#
# NOT RUN on Google Cloud: checked by shellcheck, and its loop with a stand-in for gcloud. Commands follow
# https://cloud.google.com/tpu/docs/queued-resources and https://cloud.google.com/tpu/docs/managing-tpus-tpu-vm.
#
#   export TPU_NAME=run1 ZONE=us-central2-b ACCELERATOR=v4-32 RUNTIME=tpu-ubuntu2204-base REPOSITORY=https://…
#   launch/tpu_pod.sh create              # a queued resource; SPOT=0 for one that is not preempted
#   launch/tpu_pod.sh setup               # installs vision_jax[tpu] on every worker
#   launch/tpu_pod.sh run --config=configs/resnet50.py --config.data.dir=/mnt/data --workdir=/mnt/runs/resnet50
#   launch/tpu_pod.sh logs                # follows the first worker's log, from another terminal
#   launch/tpu_pod.sh stop                # TERM to all workers: they save the same step and end with 75
#   launch/tpu_pod.sh delete
#
# The workdir must be a directory that all workers share (a mounted Filestore or gcsfuse). `run` starts again after 75.
# When a spot slice was preempted, it is gone and ssh fails: `run` then ends with that status, and REQUEUE=N in the
# environment makes it delete what is left, create and set up the slice anew and go on, up to N times in all.
# The processes find each other by the metadata of the TPU VMs. PRESETS: as in launch/presets; default: tpu.env.
set -euo pipefail

: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}"
: "${SPOT:=1}" "${REQUEUE:=0}" "${PRESETS=tpu.env}" "${POLL_SECONDS:=30}"
target=("$TPU_NAME" --zone "$ZONE")
if [ -n "${PROJECT:-}" ]; then
    target+=(--project "$PROJECT")
fi

# Runs a command on all workers, or on worker $1.
on_workers() {
    gcloud compute tpus tpu-vm ssh "${target[@]}" --worker="$1" --command="$2"
}

create() {
    local spot=()
    if [ "$SPOT" = 1 ]; then
        spot=(--spot)
    fi
    gcloud compute tpus queued-resources create "${target[@]}" --node-id "$TPU_NAME" "${spot[@]}" \
        --accelerator-type "${ACCELERATOR:?such as v4-32}" --runtime-version "${RUNTIME:?such as tpu-ubuntu2204-base}"
    wait_until_active
}

# A queued resource waits for capacity, which can take days.
wait_until_active() {
    local state
    while true; do
        state=$(gcloud compute tpus queued-resources describe "${target[@]}" --format='value(state.state)')
        case "$state" in
            ACTIVE) return 0 ;;
            FAILED | SUSPENDED | SUSPENDING)
                echo "error: the queued resource $TPU_NAME is $state" >&2
                return 1
                ;;
        esac
        echo "$TPU_NAME is $state"
        sleep "$POLL_SECONDS"
    done
}

setup() {
    local source
    source=$(printf '%q' "${REPOSITORY:?the address to clone from}")
    on_workers all "set -e; [ -d vision_jax ] || git clone $source vision_jax; cd vision_jax; git pull --ff-only
        python3 -m venv ~/venv; ~/venv/bin/pip install --quiet -e '.[tpu]'"
}

# Ends with the first status of a worker that is not 0, or 0.
run_once() {
    local arguments preset presets=""
    arguments=$(printf '%q ' "$@")
    for preset in $PRESETS; do
        presets+="source launch/presets/$preset && "
    done
    # The pid is kept for `stop`; exec makes it that of Python.
    on_workers all "cd vision_jax && $presets echo \$\$ > ~/vision_jax.pid &&
        exec ~/venv/bin/python -u -m vision_jax.main $arguments > >(tee -a ~/vision_jax.log) 2>&1"
}

# In single quotes: it is the workers' shell that replaces these.
# shellcheck disable=SC2016
logs() {
    on_workers 0 'tail -n 100 -F "$HOME/vision_jax.log"'
}

# shellcheck disable=SC2016
stop() {
    on_workers all 'kill -TERM "$(cat "$HOME/vision_jax.pid")"'
}

run() {
    local status attempt=0
    while true; do
        status=0
        run_once "$@" || status=$?
        case "$status" in
            0) return 0 ;;
            75) echo "The state is saved: starting again." ;;
            *)
                # ssh's own status; gcloud ends with 1 when it cannot reach a slice that is gone.
                if is_active || [ "$attempt" -ge "$REQUEUE" ]; then
                    return "$status"
                fi
                attempt=$((attempt + 1))
                echo "The slice is gone: making it anew, $attempt of $REQUEUE."
                delete
                create
                setup
                ;;
        esac
    done
}

is_active() {
    [ "$(gcloud compute tpus queued-resources describe "${target[@]}" --format='value(state.state)')" = ACTIVE ]
}

delete() {
    gcloud compute tpus queued-resources delete "${target[@]}" --force --quiet
}

case "${1:-}" in
    create | setup | run | logs | stop | delete) "$@" ;;
    tail) logs ;;
    *)
        echo "usage: $0 create|setup|run FLAGS…|logs|stop|delete" >&2
        exit 2
        ;;
esac
