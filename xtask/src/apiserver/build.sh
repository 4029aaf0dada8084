# Builds kube-apiserver 1.20 and fetches etcd: $1/bin/kube-apiserver, $1/bin/etcd.
#
# Debian 12 has the sources of Kubernetes with everything vendored, and no binary of the API
# server. Go must be 1.15: with bookworm's 1.19 the server refuses `default: ""` in definitions.
# Nothing is installed: packages are unpacked into the folder, lists of packages are its own.

folder=$1
cd "$folder"
mkdir -p apt/lists/partial apt/cache/archives/partial debs bin
key=/usr/share/keyrings/debian-archive-keyring.gpg
# The mirror that this machine uses; its own lists may not have been fetched yet.
mirror() { apt-get indextargets --format '$(REPO_URI)' | grep -m 1 '/debian/$'; }
mirror=$(mirror) || { apt-get -qq update && mirror=$(mirror); }
cat > apt/sources.list <<LIST
deb-src [signed-by=$key] $mirror bookworm main
deb [signed-by=$key] $mirror bookworm main
deb [signed-by=$key] $mirror bullseye main
LIST
apt="apt-get -qq -o Dir::Etc::sourcelist=$folder/apt/sources.list -o Dir::Etc::sourceparts=-
    -o Dir::State::lists=$folder/apt/lists -o Dir::Cache=$folder/apt/cache
    -o APT::Sandbox::User=$(id -un)"
$apt update
cd debs
$apt source --download-only kubernetes
$apt download golang-1.15-go/bullseye golang-1.15-src/bullseye etcd-server/bookworm \
    rsync/bookworm libpopt0/bookworm libxxhash0/bookworm
cd ..
for package in debs/*.deb; do dpkg -x "$package" root; done
rm -rf src
mkdir src
tar -xf debs/kubernetes_*.orig.tar.gz -C src --strip-components 1

# The links of Go's tree lead to where an installation would have put it.
go=$folder/root/usr/lib/go-1.15
for part in src misc test api; do
    if [ -L "$go/$part" ]; then ln -sfn "$folder/root/usr/share/go-1.15/$part" "$go/$part"; fi
done
cd src
mkdir -p .go/src/k8s.io
ln -sfn "$folder/src" .go/src/k8s.io/kubernetes
cat > version <<VERSION
KUBE_GIT_COMMIT='archive'
KUBE_GIT_TREE_STATE='archive'
KUBE_GIT_VERSION='v1.20.2'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
VERSION
# Go's settings file may hold flags that Go 1.15 does not know.
export GOENV=off
export GOROOT="$go" GOPATH="$folder/src/.go" GO111MODULE=off CGO_ENABLED=0 GOPROXY=off GOFLAGS=
export PATH="$go/bin:$folder/root/usr/bin:$PATH" KUBE_GIT_VERSION_FILE="$folder/src/version"
export LD_LIBRARY_PATH="$folder/root/usr/lib/x86_64-linux-gnu"
cd .go/src/k8s.io/kubernetes
nice -n 10 make WHAT=cmd/kube-apiserver

cp "$folder/root/usr/bin/etcd" "$folder/bin/etcd"
# Last, and in one step: a folder with this file is complete.
cp _output/bin/kube-apiserver "$folder/bin/kube-apiserver.part"
mv "$folder/bin/kube-apiserver.part" "$folder/bin/kube-apiserver"
# Two gigabytes that are needed no longer.
cd "$folder"
rm -rf src root debs apt
