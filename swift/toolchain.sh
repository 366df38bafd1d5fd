#!/usr/bin/env bash
# Runs a command where Swift is: here, where `swift` is installed; else in a Debian 13 that mmdebstrap puts into the
# user's cache, once (needs root or sudo, 3 GB). There the host's root is /host, and this repository and /tmp lie
# where they lie outside: paths mean the same on both sides. The mounts end with the command.
set -euo pipefail
here="$(cd "$(dirname "$0")/.." && pwd -P)"
server="$here/.venv/bin/python $here/swift/Standins/server.py" # behind the stand-ins for Apple's frameworks
export SPLITTER_STANDIN_SERVER="${SPLITTER_STANDIN_SERVER:-$server}"
if command -v swift >/dev/null; then
    exec "$@"
fi
[ "$(uname)" = Linux ] || { echo "No Swift: install Xcode." >&2; exit 1; }
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
root="${XDG_CACHE_HOME:-$HOME/.cache}/splitter/swift-trixie"
if [ ! -x "$root/usr/bin/swift" ] && [ ! -L "$root/usr/bin/swift" ]; then
    if apt-cache show swiftlang >/dev/null 2>&1; then
        $sudo apt-get install -y -qq swiftlang libc6-dev libstdc++-14-dev git >/dev/null
        exec "$@"
    fi
    command -v mmdebstrap >/dev/null || { $sudo apt-get update -qq; $sudo apt-get install -y -qq mmdebstrap >/dev/null; }
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
    mkdir -p "$(dirname "$root")"
    making=$(mktemp -d "$root.XXXXXX")
    trap '$sudo rm -rf --one-file-system "$making"' EXIT
    $sudo mmdebstrap --quiet --variant=minbase --include=swiftlang,libc6-dev,libstdc++-14-dev,git trixie "$making" "$mirror"
    $sudo mkdir -p "$making/host"
    $sudo mv -T "$making" "$root"
    trap - EXIT
fi
export SPLITTER_STANDIN_SERVER="/usr/sbin/chroot /host $SPLITTER_STANDIN_SERVER"
# shellcheck disable=SC2016
exec $sudo unshare --mount --propagation private bash -c '
    root=$1 tree=$2 place=$3
    shift 3
    mkdir -p "$root$tree" "$root/host"
    mount --rbind / "$root/host"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --bind "$tree" "$root$tree"
    mount --bind /tmp "$root/tmp"
    exec chroot "$root" env PATH=/usr/bin:/bin:/usr/sbin HOME=/tmp bash -c "cd \"\$0\" && exec \"\$@\"" "$place" "$@"
' - "$root" "$here" "$PWD" "$@"
