#!/usr/bin/env bash
# Drains this machine's Ray node when its cloud gives notice that it takes the machine away, so that groundray writes a
# checkpoint at once and resumes on the remaining machines. Workers start it beside Ray; it ends with their node. Its
# status: 0 drained, 1 there is no such node (any more), 2 usage.
#
#   drain-on-notice.sh {aws|gcp} HEAD_IP:PORT [SECONDS BETWEEN TWO LOOKS]
#   drain-on-notice.sh now HEAD_IP:PORT    a person's own notice, before a machine is switched off
set -euo pipefail

cloud=${1-} head=${2-} pause=${3:-5} # every five seconds is EC2's own advice

# The node of that cluster on this machine, from its raylet's arguments, which is where Ray's own drivers find it: a
# driver of our own, just to ask, would take seconds of the notice.
node() {
    grep -lszxF -- "--gcs-address=$head" /proc/[0-9]*/cmdline | xargs -r sed -zn 's/^--node_id=//p' 2>/dev/null |
        tr '\0' '\n' | head -n 1
}

look() {
    curl --silent --fail --max-time 2 --noproxy '*' "$@"
}

# Each says how many seconds are left, and fails as long as there is no notice.
notice_aws() {
    local service=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254} token action at
    token=$(look --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$service/latest/api/token") &&
        action=$(look --header "X-aws-ec2-metadata-token: $token" "$service/latest/meta-data/spot/instance-action") &&
        at=$(grep -oE '[0-9-]{10}T[0-9:]{8}Z' <<<"$action") && # {"action": "terminate", "time": "2026-01-31T08:22:00Z"}
        echo $(($(date --date="$at" +%s) - $(date +%s)))
}

notice_gcp() {
    local service=http://${GCE_METADATA_HOST:-metadata.google.internal}
    [[ $(look --header 'Metadata-Flavor: Google' "$service/computeMetadata/v1/instance/preempted") == TRUE ]] &&
        echo 120 # preemptionNoticeDuration in gcp.yaml; GCP does not say when the notice began
}

notice_now() {
    echo 120
}

declare -F "notice_$cloud" >/dev/null || { echo "expected aws, gcp or now, got $cloud" >&2 && exit 2; }
runs() {
    [[ -n $(node) ]] || { echo "no Ray node of $head runs here" >&2 && exit 1; }
}
until left=$("notice_$cloud"); do
    runs
    sleep "$pause"
done
runs
# the head may be busy, or out of reach for a moment
until ray drain-node --address "$head" --node-id "$(node)" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "$cloud: the machine goes" --deadline-remaining-seconds $((left > 0 ? left : 0)); do
    sleep 1
    runs
done
echo "$(date -u +%FT%TZ) draining, $left s are left"
