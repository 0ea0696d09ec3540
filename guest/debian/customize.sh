#!/bin/sh
# Turns a fresh Debian into the test guest. Run by mmdebstrap with the new system's root as its argument.
# Everything here is for a machine that boots under emulation, is looked at by tests and is thrown away:
# it logs root in on the serial port, trusts whoever is local, and leaves out what only costs time.
set -eu
root=$1

echo keyframe-debian > "$root/etc/hostname"
# A fixed identity: drawing one makes systemd treat every boot of the untouched disk as the first.
echo 6b657966726d652d64656269616e0001 > "$root/etc/machine-id"
cat > "$root/etc/fstab" <<'END'
PARTLABEL=keyframe-root /                   ext4 errors=remount-ro 0 0
LABEL=keyframe-data     /var/lib/postgresql ext4 defaults          0 0
END

mkdir -p "$root/etc/systemd/system/serial-getty@ttyS0.service.d" "$root/etc/systemd/network"
cat > "$root/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf" <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I linux
END
cat > "$root/etc/systemd/network/wired.network" <<'END'
[Match]
Name=en* eth*
[Network]
DHCP=yes
END

# A terminal that a program reads: no colours, no pager, no line editing, a prompt that is found easily.
passwd=$root/etc/passwd
sed -i 's|^root:[^:]*:|root::|' "$passwd"
cat > "$root/root/.bash_profile" <<'END'
stty -echo cols 400
set +o emacs +o history
export PAGER=cat TERM=dumb PS1='keyframe# '
END
touch "$root/root/.hushlogin"
cat > "$root/etc/profile.d/psql.sh" <<'END'
alias psql='psql --no-readline --no-psqlrc'
END

# PostgreSQL as it comes, durable as it comes; only who may log in is eased.
conf=$root/etc/postgresql/15/main
sed -i 's/^\(local .*\|host .*127.0.0.1.*\)\(peer\|scram-sha-256\)$/\1trust/' "$conf/pg_hba.conf"
echo "listen_addresses = '127.0.0.1'" > "$conf/conf.d/keyframe.conf"

off="apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service
     fstrim.timer man-db.timer systemd-tmpfiles-clean.timer getty@tty1.service console-getty.service
     systemd-networkd-wait-online.service systemd-pstore.service systemd-hwdb-update.service ldconfig.service
     systemd-journal-catalog-update.service systemd-journal-flush.service systemd-random-seed.service
     systemd-update-utmp.service systemd-boot-random-seed.service modprobe@drm.service modprobe@fuse.service modprobe@configfs.service
     modprobe@dm_mod.service modprobe@loop.service sys-kernel-config.mount sys-fs-fuse-connections.mount
     sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount"
for unit in $off; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
chroot "$root" systemctl --quiet set-default multi-user.target
chroot "$root" systemctl --quiet enable systemd-networkd.service serial-getty@ttyS0.service

mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nForwardToConsole=no\n' > "$root/etc/systemd/journald.conf.d/keyframe.conf"
chroot "$root" depmod "$(ls "$root/lib/modules")"
rm -rf "$root/var/lib/apt/lists"/* "$root/var/cache/apt"/*
