# Turns fresh namespaces into a machine of a cluster, as its process 1. Read once, then replaced.
#   sh -eu machine.sh STATE CACHE PACKAGES NAME COMMAND...
# STATE is the machine's folder, CACHE holds the programs, PACKAGES are Debian's packages unpacked.
# Every mount is made in this mount namespace and every interface in this network namespace: both go
# with the last process.

state=$1 cache=$2 packages=$3 name=$4
shift 4
echo namespaces
# The supervisor writes a line when the interfaces are here.
read -r _

mount --make-rprivate /
hostname "$name"

# A root of its own: this machine's files, and what is written stays in memory.
mkdir -p "$state/memory" "$state/disk" "$state/root"
mount -t tmpfs -o mode=755 tmpfs "$state/memory"
mkdir "$state/memory/upper" "$state/memory/work"
root=$state/root
mount -t overlay -o "lowerdir=/,upperdir=$state/memory/upper,workdir=$state/memory/work" overlay "$root"

# Packages that are not installed are links to where they are unpacked.
cp --archive --symbolic-link --no-clobber "$packages/usr" "$root"

# Images and volumes are on disk; the cache has the programs and this folder.
for folder in var/lib/containerd var/lib/kubelet var/lib/etcd var/log; do
    mkdir -p "$root/$folder" "$state/disk/$folder"
    mount --bind "$state/disk/$folder" "$root/$folder"
done
mkdir -p "$root$cache"
mount --bind "$cache" "$root$cache"

mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/var/lib/cni" "$root/run/lock"
mount --bind /dev "$root/dev"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"

# Each hierarchy of cgroups, as the cgroup namespace shows it.
cgroups=$root/sys/fs/cgroup
if grep -q '^[1-9]' /proc/self/cgroup; then
    mount -t tmpfs -o mode=755 tmpfs "$cgroups"
    while IFS=: read -r _ controllers _; do
        folder=${controllers#name=}
        case $controllers in
        '') folder=unified type=cgroup2 options=rw ;;
        name=*) type=cgroup options=none,$controllers ;;
        *) type=cgroup options=$controllers ;;
        esac
        mkdir "$cgroups/$folder"
        mount -t "$type" -o "$options" cgroup "$cgroups/$folder"
        for one in $(echo "$folder" | tr , ' '); do
            if [ "$one" != "$folder" ]; then ln -s "$folder" "$cgroups/$one"; fi
        done
    done < /proc/self/cgroup
else
    mount -t cgroup2 cgroup "$cgroups"
    # Where processes are, no controller can be handed on: they move one down.
    mkdir -p "$cgroups/services"
    echo 1 > "$cgroups/services/cgroup.procs"
    for one in $(cat "$cgroups/cgroup.controllers"); do
        echo "+$one" > "$cgroups/cgroup.subtree_control"
    done
fi
mount -t bpf bpf "$root/sys/fs/bpf"
if [ -d "$root/sys/kernel/tracing" ]; then mount -t tracefs tracefs "$root/sys/kernel/tracing"; fi

# Settings of the whole kernel cannot be changed from here. kubelet finds the values that it wants.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,rw "$root/proc/sys/net"
while read -r setting value; do
    file=$state/memory/$(echo "$setting" | tr / .)
    echo "$value" > "$file"
    if [ -e "$root/proc/sys/$setting" ]; then mount --bind "$file" "$root/proc/sys/$setting"; fi
done <<SETTINGS
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SETTINGS

cd "$root"
mkdir -p mnt/old
pivot_root . mnt/old
umount -l /mnt/old
mount --make-rshared /
ip link set lo up
echo "127.0.0.1 localhost $name" > /etc/hosts
exec "$@"
