#!/bin/sh
# Brings a Keyframe snapshot back with nothing but QEMU: see RESTORE-WITHOUT-KEYFRAME.md.
#
#     restore-without-keyframe.sh SNAPSHOT-DIR HOME EMPTY-DIR
#
# Needs sh, jq, python3, qemu-img, qemu-system-x86_64. Nothing below HOME is written to: the restored machine writes to fresh
# overlays in EMPTY-DIR, where its console (console.sock), its log (serial.log) and QMP (qmp.sock) are too. QEMU's monitor is
# the terminal: `info status`, `cont`, `quit`.
set -eu
scripts=$(dirname "$(realpath "$0")")
snapshot=$(realpath "$1") home=$(realpath "$2") work=$(realpath "$3")

# The manifest: everything is in its body.
manifest() { jq -r ".body.$1" "$snapshot/manifest.json"; }
has() { [ "$(manifest "$1")" != null ]; }
# Paths of layers are relative to the home, or absolute.
layer() { case $1 in /*) echo "$1" ;; *) echo "$home/$1" ;; esac }
# In QEMU's key=value lists a comma is written twice.
value() { printf '%s' "$1" | sed 's/,/,,/g'; }

# A fresh overlay on each frozen layer: the snapshot itself is never written to.
overlay() { # chain in the manifest, name
    vm=$(manifest "$1.layer.vm") id=$(manifest "$1.layer.layer")
    frozen() { jq -r --arg id "$id" ".body.layers[] | select(.id == \$id) | .$1" "$home/vms/$vm/tree.json"; }
    qemu-img create -q -f qcow2 -F "$(frozen format)" -b "$(layer "$(frozen path)")" "$work/$2.qcow2"
}

# The same machine: every device where it was, in PCI slots too.
memory=$(manifest definition.memory_mib)
machine=$(manifest definition.machine_type),memory-backend=ram0,hpet=off,vmport=off
case $(manifest qemu.accelerator) in kvm) cpu=host accel=kvm ;; *) cpu=max accel=tcg,thread=multi ;; esac

set --
if has nvram; then
    overlay nvram nvram
    set -- "$@" -blockdev "driver=raw,node-name=fw-code,read-only=on,file.driver=file,file.filename=${OVMF_CODE:-/usr/share/OVMF/OVMF_CODE_4M.fd}"
    set -- "$@" -blockdev "driver=qcow2,node-name=nvram,file.driver=file,file.filename=$(value "$work/nvram.qcow2")"
    machine=$machine,pflash0=fw-code,pflash1=nvram
fi
if has definition.kernel; then
    set -- "$@" -kernel "$(manifest definition.kernel.kernel)" -append "$(manifest definition.kernel.append)"
    if has definition.kernel.initrd; then set -- "$@" -initrd "$(manifest definition.kernel.initrd)"; fi
fi
if has definition.nic; then
    set -- "$@" -netdev user,id=net0,restrict=on
    set -- "$@" -device "virtio-net-pci,id=nic0,bus=nicport,netdev=net0,mac=$(manifest definition.nic.mac),romfile="
fi
number=0
while [ "$number" -lt "$(manifest 'disks | length')" ]; do
    disk=$(manifest "disks[$number].disk")
    overlay "disks[$number]" "$disk"
    set -- "$@" -blockdev "driver=qcow2,node-name=$disk,discard=unmap,file.driver=file,file.filename=$(value "$work/$disk.qcow2")"
    set -- "$@" -device "virtio-blk-pci,id=d-$disk,drive=$disk,bus=pcie.0,addr=$(printf '0x%x' $((8 + number))),serial=$disk,bootindex=$((number + 1))"
    number=$((number + 1))
done

number=0
while [ "$number" -lt "$(manifest 'definition.extra_args // [] | length')" ]; do
    set -- "$@" "$(manifest "definition.extra_args[$number]")"
    number=$((number + 1))
done

# The saved state: QEMU loads it by itself; `mapped-ram` says that it is a file with every page in its place.
if has memory; then
    image=$snapshot/$(manifest memory.file)
    if [ ! -e "$image" ]; then
        # It shares pages with older snapshots: put together from all their files.
        image=$work/memory.mapped
        python3 "$scripts/whole-memory-image.py" "$snapshot" "$image"
    fi
    set -- "$@" -global migration.mapped-ram=on -incoming "file:$image"
fi

cd "$work"
exec qemu-system-x86_64 -no-user-config -nodefaults -display none \
    -name "$(manifest definition.name)" -uuid "$(manifest definition.uuid)" \
    -machine "$machine" -accel "$accel" -cpu "$cpu" -smp "$(manifest definition.cpus)" \
    -m "${memory}M" -object "memory-backend-ram,id=ram0,size=${memory}M" -rtc base=utc,clock=host \
    -monitor stdio -qmp unix:qmp.sock,server=on,wait=off \
    -chardev socket,id=agent0,path=agent.sock,server=on,wait=off \
    -chardev socket,id=serial0,path=console.sock,server=on,wait=off,logfile=serial.log -serial chardev:serial0 \
    -device VGA,bus=pcie.0,addr=0x1,vgamem_mb=16 \
    -device virtio-rng-pci,bus=pcie.0,addr=0x2,id=rng0 \
    -device virtio-serial-pci,bus=pcie.0,addr=0x3,id=vserial0 \
    -device virtserialport,bus=vserial0.0,nr=1,chardev=agent0,name=org.qemu.guest_agent.0 \
    -device pcie-root-port,id=nicport,bus=pcie.0,addr=0x4,chassis=1 \
    -device vmgenid,guid=auto \
    "$@"
