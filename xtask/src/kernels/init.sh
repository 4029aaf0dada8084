#!/bin/sh
# The guest's first process: mounts, modules, tests, end. Everything that the host reads goes to
# the second serial line; the first is the kernel's.
export PATH=/sbin:/usr/sbin:/bin:/usr/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec < /dev/null > /dev/ttyS1 2>&1
# A guest whose host went away ends all the same.
(sleep "$(cat /guest/limit)"; echo "@ out of time"; reboot -f) &
for module in /guest/modules/*.ko; do
    insmod "$module" || echo "@ module $module is refused"
done
ip link set lo up
echo "@ kernel $(uname -r)"
export PD_ROUTER_BIN=/guest/pd-router SGLANG_SIM_BIN=/guest/sglang-sim
export PD_ROUTER_EBPF_OBJECT=/guest/router-ebpf PD_ROUTER_FINDINGS=/dev/ttyS1
export RUST_BACKTRACE=0
# An emulated CPU is slow, and slower on a busy host: deadlines are this many times longer.
export PD_ROUTER_TEST_SLOWNESS=10
# One word a line: tests' names have no spaces, but flags come one by one.
set --
while read -r word; do set -- "$@" "$word"; done < /guest/arguments
/guest/tests "$@"
echo "@ ended with $?"
reboot -f
