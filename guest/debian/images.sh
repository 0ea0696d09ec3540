#!/bin/sh
# Writes the new system into disk images. Run by mmdebstrap, after customize.sh, with the system's root; the
# directory of the images and the offset of the root partition in bytes come before it.
set -eu
images=$1 offset=$2 size_kib=$3 root=$4

# The same tree without what is mounted over it while the system is being made (/proc, /sys, /dev).
bare=$images/root
mkdir "$bare"
mount --bind "$root" "$bare"
trap 'umount "$bare"; rmdir "$bare"' EXIT

cp "$bare/usr/lib/systemd/boot/efi/systemd-bootx64.efi" "$images/bootx64.efi"
owner=$(stat -c %u:%g "$bare/var/lib/postgresql")
fast=lazy_itable_init=0,lazy_journal_init=0
mke2fs -q -t ext4 -L keyframe-data -E "root_owner=$owner,$fast" -d "$bare/var/lib/postgresql" "$images/data.raw"
# What lies on the data disk must not lie below its mount point too.
find "$bare/var/lib/postgresql" -mindepth 1 -delete
mke2fs -q -t ext4 -L keyframe-root -E "offset=$offset,$fast" -d "$bare" "$images/disk.raw" "${size_kib}k"
