#!/bin/sh
# Installs a package in a system that has not got it yet, looks whether what is in it works, and takes it away again.
#
#   check.sh ROOT DEB SUITE
#
# ROOT is a Debian in a directory, with what is needed below; SUITE is where QEMU comes from. `cargo xtask package --check` makes one.
set -eu
root=$1 deb=$2 suite=$3

there() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
wrong() { echo "package: $*" >&2; exit 1; }
# What belongs to packages that come and go; not what their managers and those who look at them note.
files() { there find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /root -o -path /var/cache \
    -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt \) -prune -o -print | sort; }

there apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends -t "$suite" qemu-system-x86 qemu-utils >/dev/null
files >"$root/tmp/before"
cp "$deb" "$root/tmp/keyframe.deb"

echo "what is in it: root's, and nobody else's to change; nothing to run but the program"
there dpkg-deb --contents /tmp/keyframe.deb >"$root/tmp/contents"
awk '$2 !~ /^(root\/root|0\/0)$/ || substr($1, 6, 1) == "w" || substr($1, 9, 1) == "w" || $1 ~ /[sS]/' "$root/tmp/contents" | grep . >&2 && wrong "modes"
[ "$(awk '$1 ~ /^-..x/ { print $NF }' "$root/tmp/contents")" = ./usr/bin/keyframe ] || wrong "what can be run"
there lintian --fail-on error,warning --suppress-tags non-standard-file-perm,initial-upload-closes-no-bugs --tag-display-limit 0 /tmp/keyframe.deb >&2 || wrong "lintian"

echo "it is installed, and starts nothing"
there apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends /tmp/keyframe.deb >/dev/null
there keyframe --version | grep -Eqx 'keyframe [0-9.]+ \([0-9a-f]{10}\)' || wrong "the version: $(there keyframe --version)"
[ ! -e "$root/etc/systemd/system/multi-user.target.wants/keyframe.service" ] || wrong "the daemon was enabled"
[ "$(stat -c %a "$root/etc/keyframe/serve.env")" = 600 ] || wrong "others can read serve.env"
[ "$(there dpkg-query -W -f '${Conffiles}\n' keyframe | grep -c '^ /')" = 1 ] || wrong "conffiles: $(there dpkg-query -W -f '${Conffiles}' keyframe)"

echo "manual pages, completions, the unit, examples"
for page in "$root"/usr/share/man/man1/keyframe*.1.gz; do
    said=$(there man --warnings -l -Tutf8 "/usr/share/man/man1/${page##*/}" 2>&1 >"$root/tmp/page") || wrong "man ${page##*/}: $said"
    [ -z "$said" ] && [ "$(wc -l <"$root/tmp/page")" -gt 9 ] || wrong "man ${page##*/}: $said"
done
there man -w keyframe keyframe-snapshot keyframe-serve >/dev/null || wrong "man finds no page"
there bash -c '. /usr/share/bash-completion/bash_completion; _completion_loader keyframe || [ $? = 124 ]
    COMP_WORDS=(keyframe dril) COMP_CWORD=1; _keyframe keyframe dril keyframe; [ "${COMPREPLY[*]}" = "drill drills" ]' || wrong "bash"
there zsh -fc 'autoload -Uz compinit; compinit -u -D; [[ $_comps[keyframe] == _keyframe ]] && autoload +X _keyframe' || wrong "zsh"
there fish -c 'complete -C "keyframe dril"' | grep -q ^drill || wrong "fish"
units=$(there dpkg-query -L keyframe | sed -n 's#.*/systemd/system/##p' | sort | tr '\n' ' ')
[ "$units" = "keyframe-api.socket keyframe.service " ] || wrong "the units are $units"
said=$(there systemd-analyze verify --man=yes /lib/systemd/system/keyframe.service /lib/systemd/system/keyframe-api.socket 2>&1) || wrong "the units: $said"
[ -z "$said" ] || wrong "the units: $said"
there keyframe policy check /usr/share/doc/keyframe/examples/policies >/dev/null || wrong "the examples"

echo "again, with what an administrator changed"
echo "#mine" >>"$root/etc/keyframe/serve.env"
there systemctl --quiet enable keyframe
mkdir -p "$root/var/lib/keyframe/vms"
there keyframe policy example >"$root/etc/keyframe/policies.toml"
there keyframe policy check >/dev/null || wrong "policies in /etc/keyframe"
there dpkg --install /tmp/keyframe.deb >/dev/null
grep -q '^#mine' "$root/etc/keyframe/serve.env" || wrong "what was changed is gone"
[ -L "$root/etc/systemd/system/multi-user.target.wants/keyframe.service" ] || wrong "the daemon is no longer enabled"

echo "it goes: what was made with it stays, and nothing else"
there apt-get -qq -o=Dpkg::Use-Pty=0 remove keyframe >/dev/null
grep -q '^#mine' "$root/etc/keyframe/serve.env" || wrong "what was changed is gone with the program"
there dpkg --purge keyframe >/dev/null 2>&1
files >"$root/tmp/after"
left=$(comm -13 "$root/tmp/before" "$root/tmp/after" | tr '\n' ' ')
[ "$left" = "/etc/keyframe /etc/keyframe/policies.toml /var/lib/keyframe /var/lib/keyframe/vms " ] || wrong "left: $left"
[ -z "$(comm -23 "$root/tmp/before" "$root/tmp/after")" ] || wrong "gone: $(comm -23 "$root/tmp/before" "$root/tmp/after")"
