#!/bin/bash
# Start the pod's ssh server with the keys that came with the order, and the watch over its lease.
#
#   SCF_PUBLIC_KEY     may log in as `worker`; else PUBLIC_KEY; without one nothing starts
#   SCF_SSH_HOST_KEY   this pod's private host key, base64: the overseer knows its public half
#   SCF_LEASE_UNTIL    when this pod ends itself (with RUNPOD_POD_ID and RUNPOD_API_KEY)
#   SCF_SSH_PORT       default 22
set -euo pipefail
umask 077

fail() { echo "scf-entrypoint: $*" >&2; exit 78; }

# RunPod may write the account's own keys to PUBLIC_KEY.
public_key="${SCF_PUBLIC_KEY:-${PUBLIC_KEY:-}}"
[[ -n "${public_key}" ]] || fail "neither SCF_PUBLIC_KEY nor PUBLIC_KEY is set: nobody could log in"
[[ -n "${SCF_SSH_HOST_KEY:-}" ]] || fail "SCF_SSH_HOST_KEY is not set: nobody could trust this pod"

install -d -m 0755 /run/scf /run/sshd
printf '%s' "${SCF_SSH_HOST_KEY}" | base64 -d >/run/scf/host_key 2>/dev/null \
    || fail "SCF_SSH_HOST_KEY is not base64"
ssh-keygen -y -f /run/scf/host_key >/dev/null 2>&1 || fail "SCF_SSH_HOST_KEY is no private key"
printf '%s\n' "${public_key}" >/run/scf/authorized_keys
chmod 0644 /run/scf/authorized_keys
# Names alone, for `scf pods smoke`: what the provider puts into a pod.
compgen -e | grep -E '^(RUNPOD|SCF|PUBLIC_KEY)' | sort >/run/scf/variables || true
chmod 0644 /run/scf/variables
# A volume that was mounted here belongs to root.
install -d -o worker -g worker /workspace/scf

if [[ -n "${SCF_LEASE_UNTIL:-}" ]]; then
    # It is started again should it fail: this pod must not outlive its lease.
    (until python3 -I /usr/local/lib/scf/pod_lease.py; do sleep 20; done) &
else
    echo "scf-entrypoint: SCF_LEASE_UNTIL is not set: this pod does not end itself" >&2
fi

# What is secret here stays with this process: neither sshd nor a job has it.
unset SCF_SSH_HOST_KEY RUNPOD_API_KEY PUBLIC_KEY
exec /usr/sbin/sshd -D -e -p "${SCF_SSH_PORT:-22}" -f /etc/scf/sshd_config
