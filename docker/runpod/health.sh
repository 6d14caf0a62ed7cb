#!/bin/bash
# Healthy is: something on the ssh port says that it speaks ssh.
exec 3<>"/dev/tcp/127.0.0.1/${SCF_SSH_PORT:-22}" || exit 1
read -r -t 4 banner <&3 || exit 1
[[ "${banner}" == SSH-2.0-* ]]
