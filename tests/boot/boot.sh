#!/usr/bin/env bash
# Boots a throw-away copy of this machine with its real systemd, in which SCENARIO runs; root, and `unshare --mount` around it:
# the mounts are then nobody else's, and go with this process. The machine has no network but its own loopback.
#   unshare --mount boot.sh ROOT CHECKOUT RESULTS SCENARIO PYTHON < commands that install, run before the boot
# ROOT: an empty folder. CHECKOUT: the project. RESULTS: a folder that SCENARIO writes to. PYTHON: an interpreter's prefix.
set -euo pipefail
root=$1 checkout=$2 results=$3 scenario=$4 python=$5
mount --make-rprivate /

# A layer in memory over the machine's own files: nothing is copied, nothing is written to the machine.
mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir "$root"/{upper,work,machine}
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/machine"
root=$root/machine

# The service sees no home folder, and an interpreter may lie in one; its library is looked for where it was built.
case $python in /root/* | /home/*)
    mkdir -p "$root/opt/python"
    mount --bind -o ro "$python" "$root/opt/python"
    python=/opt/python
    echo $python/lib >"$root/etc/ld.so.conf.d/scenario.conf"
    ;;
esac
mkdir -p "$root"/{usr/src/per-agent,srv/scenario,srv/results}
mount --bind -o ro "$checkout" "$root/usr/src/per-agent"
mount --bind -o ro "$(dirname "$scenario")" "$root/srv/scenario"
mount --bind "$results" "$root/srv/results"

# What this machine may have of an installation.
rm -rf "$root"/etc/credstore/per-agent.* "$root"/opt/per-agent "$root"/etc/per-agent "$root"/var/lib/{private/,}per-agent \
    "$root"/etc/systemd/system/per-agent.*
chroot "$root" groupdel per-agent 2>/dev/null || true

# As an administrator installs it, with the network of this machine.
cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
PATH=$python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$root" bash -euxo pipefail -c 'ldconfig && cd /usr/src/per-agent && . /dev/stdin'
umount --recursive --lazy "$root/dev" "$root/proc"

# Only what a machine always starts, and the scenario; what else is installed here has no part in it.
cat >"$root/etc/systemd/system/scenario.service" <<'UNIT'
[Unit]
Description=Scenario
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
ExecStart=/opt/per-agent/bin/python /srv/scenario/scenario.py /srv/results
TimeoutStartSec=infinity
UNIT
cat >"$root/etc/systemd/system/scenario.target" <<'UNIT'
[Unit]
Description=What a machine always starts, and the scenario
Requires=basic.target scenario.service
After=basic.target
AllowIsolate=yes
UNIT
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id" # without one, everything installed here is enabled
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn # what is left there goes with the mount, too
exec systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --link-journal=no --resolv-conf=off \
    --private-network --machine=per-agent-test-$$ --boot systemd.unit=scenario.target \
    systemd.mask=timers.target systemd.show_status=no
