# Fetches Debian's kernels and the programs of the guests: $1/FAMILY/{vmlinuz,version,modules} for
# each further argument, and $1/tools. What is there already stays.
#
# Nothing is installed: packages are unpacked into the folder, lists of packages are its own.

folder=$1
shift
cd "$folder"
mkdir -p apt/lists/partial apt/cache/archives/partial debs
key=/usr/share/keyrings/debian-archive-keyring.gpg
# The mirror that this machine uses; its own lists may not have been fetched yet.
mirror() { apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/$'; }
mirror=$(mirror) || { apt-get -qq update && mirror=$(mirror); }
# Security updates stand beside the archive on every mirror that carries both.
security=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian-security/$') ||
    security=${mirror%/debian/}/debian-security/
cat > apt/sources.list <<LIST
deb [signed-by=$key] $mirror bookworm main
deb [signed-by=$key] $security bookworm-security main
deb [signed-by=$key] $security bullseye-security main
deb [signed-by=$key] $mirror trixie-backports main
LIST
# An empty status: what this machine has installed does not count.
: > apt/status
own="-o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=-
    -o Dir::State::lists=$folder/apt/lists -o Dir::State::status=$folder/apt/status
    -o Dir::Cache=$folder/apt/cache -o APT::Sandbox::User=$(id -un)
    -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o Acquire::Retries=3"
apt-get -qq $own update

if [ ! -d tools ]; then
    # With everything that these need, libraries included.
    apt-get -qq $own install --download-only -y --no-install-recommends -t bookworm \
        busybox-static dash iproute2 bpftool perftest rdmacm-utils ibverbs-providers
    rm -rf tools.part
    mkdir tools.part
    for package in apt/cache/archives/*.deb; do dpkg-deb -x "$package" tools.part; done
    mv tools.part tools
fi

newest() {
    apt-cache $own pkgnames "linux-image-$1." |
        grep -E '^linux-image-[0-9.]+(-[0-9]+|\+deb[0-9]+)-amd64$' | sort -V | tail -n 1
}
for family; do
    if [ -d "$family" ]; then continue; fi
    image=$(newest "$family")
    if [ -z "$image" ]; then
        echo "Debian has no linux-image-$family here any more" >&2
        exit 1
    fi
    version=${image#linux-image-}
    # Newer ones come in three packages.
    packages=$(apt-cache $own pkgnames "linux-binary-$version")
    packages=${packages:+"$packages linux-modules-$version linux-base-$version"}
    echo "fetching Linux $version"
    rm -rf debs "$family.part"
    mkdir debs "$family.part"
    (cd debs && apt-get -qq $own download ${packages:-$image})
    for package in debs/*.deb; do
        # The rest of the drivers would be nine tenths of it.
        dpkg-deb --fsys-tarfile "$package" | tar -x -C "$family.part" --wildcards \
            --exclude '*/net/wireless' --exclude '*/net/ethernet' --exclude '*/infiniband/hw' \
            '*vmlinuz*' '*/modules.builtin' '*/kernel/net' '*/kernel/lib' '*/kernel/crypto' \
            '*/kernel/drivers/net' '*/kernel/drivers/infiniband' '*/kernel/arch' \
            '*/kernel/fs/configfs' 2> debs/tar.log ||
            grep -q 'Not found in archive' debs/tar.log || { cat debs/tar.log >&2; exit 1; }
    done
    mv "$(find "$family.part" -name 'vmlinuz*')" "$family.part/vmlinuz"
    mv "$(find "$family.part" -path "*/modules/$version")" "$family.part/modules"
    test -f "$family.part/modules/modules.builtin"
    echo "$version" > "$family.part/version"
    # Last, and in one step: a folder of this name is complete.
    mv "$family.part" "$family"
done
rm -rf debs apt
