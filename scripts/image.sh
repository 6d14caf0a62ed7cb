#!/bin/bash
# Build the worker's image with buildah, where there is no Docker engine.
#
#   scripts/image.sh [TAG]                      the real one, from its base by digest
#   BASE=localhost/scf-base TORCH=none scripts/image.sh TAG    from a local base, without torch
#   scripts/image.sh --base ROOTFS TAG          make a local base of a Debian root (debootstrap)
#
# BUILDAH_ISOLATION=chroot works in a container and without user namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v buildah >/dev/null || { echo "image: buildah is not installed (apt install buildah)" >&2; exit 1; }
export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"

if [[ "${1:-}" == --base ]]; then
    container=$(buildah from scratch)
    trap 'buildah rm "${container}" >/dev/null' EXIT
    buildah copy -q "${container}" "$2" /
    buildah config --cmd /bin/bash "${container}"
    buildah commit -q "${container}" "$3"
    exit
fi
# Times in the image are the commit's: the same commit, base and packages give the same layers.
moment="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
arguments=(--network host --format docker --ignorefile docker/runpod/Dockerfile.dockerignore
           --timestamp "${moment}")
[[ -n "${BASE:-}" ]] && arguments+=(--build-arg "BASE=${BASE}")
[[ -n "${TORCH:-}" ]] && arguments+=(--build-arg "TORCH=${TORCH}")
exec buildah bud "${arguments[@]}" -f docker/runpod/Dockerfile -t "${1:-scf-worker}" .
