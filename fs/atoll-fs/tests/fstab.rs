//! A machine without Kubernetes: mount(8), umount(8) and lines of fstab. In a mount namespace of its own, where this program is
//! installed under the names that they look for.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod served_support;

use std::fs;
use std::process::{Command, Stdio};

use served_support::{Servers, folder};

/// What each script begins with. It ends with all processes that it has started.
const SET_UP: &str = r#"
set -eu
fail() { echo "FAILED: $*" >&2; exit 1; }
refused() {
  word=$1; shift
  if "$@" 2>"$WORK/said"; then fail "$* succeeded"; fi
  grep -q -- "$word" "$WORK/said" || fail "$*: $(cat "$WORK/said")"
}
options() { findmnt -n -o OPTIONS --mountpoint "$1"; }
mount --make-rprivate /
for hidden in /usr/sbin /run /var/log; do mount -t tmpfs none $hidden; done
[ "$(readlink -f /sbin)" = /usr/sbin ] || mount --bind /usr/sbin /sbin
for name in mount.atoll mount.fuse.atoll umount.fuse.atoll; do ln -s "$PROGRAM" /usr/sbin/$name; done
"#;

fn run(servers: &Servers, script: &str) {
    let path = servers.path("script");
    fs::write(&path, format!("{SET_UP}{script}")).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh"])
        .arg(&path)
        .env("PROGRAM", common::atoll_fs())
        .env("WORK", servers.path(""))
        .env("ID", servers.id())
        .env("METADATA", servers.metadata())
        .env("PLACE", folder(servers, "data"))
        .env("PATH", "/usr/bin:/bin")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}\n{}", output.status, common::text(&output));
}

#[test]
fn a_line_of_fstab_is_a_mount_and_umount_waits_until_everything_is_written() {
    let servers = Servers::start(&[]);
    run(
        &servers,
        r#"
fstab() { echo "atoll:$ID $PLACE atoll metadata=$METADATA,key=$WORK/key,$1 0 0" >"$WORK/fstab"; }
fstab noatime,nosuid,nodev,nofail,_netdev,x-systemd.requires=network-online.target
mount -a -T "$WORK/fstab"
case $(options "$PLACE") in *nosuid*nodev*noatime*) ;; *) fail "$(options "$PLACE")" ;; esac
# At every boot, and whenever somebody calls it.
mount -a -T "$WORK/fstab"
[ "$(grep -c " $PLACE " /proc/self/mounts)" = 1 ] || fail 'mounted twice'
refused 'already a mount' mount -t atoll -o "metadata=$METADATA,key=$WORK/key" "atoll:$ID" "$PLACE"
[ -n "$(ls /run/atoll/mounts)" ] || fail 'the process has lost its record'
echo content >"$PLACE/file"
touch -a -d 2001-02-03 "$PLACE/file"
cat "$PLACE/file" >/dev/null
[ "$(stat -c %x "$PLACE/file" | cut -c1-10)" = 2001-02-03 ] || fail 'the access time moved'

# What is in use stays.
refused busy sh -c "cd '$PLACE' && umount '$PLACE'"
[ "$(cat "$PLACE/file")" = content ] || fail 'it is gone'
# Nothing was synced. When umount returns, all of it is with the cluster, and the process is gone.
umount "$PLACE"
[ -z "$(ls /run/atoll/mounts)" ] || fail 'the process is still there'
if pgrep -f "mount --cluster $ID" >/dev/null; then fail 'the process is still there'; fi
ls /var/log/atoll/*.log >/dev/null

fstab ro,noexec
mount -T "$WORK/fstab" "$PLACE"
[ "$(cat "$PLACE/file")" = content ] || fail 'what was written is lost'
refused 'Read-only' sh -c "echo more >'$PLACE/file'"
mount -o remount,rw,noexec "$PLACE"
echo more >>"$PLACE/file"
refused 'unmount it first' mount -o remount,noatime "$PLACE"
umount "$PLACE"

# A process that is killed leaves a mount that umount takes away.
mount -T "$WORK/fstab" "$PLACE"
kill -9 $(pgrep -f "mount --cluster $ID")
while cat "$PLACE/file" 2>/dev/null; do sleep 0.1; done
umount "$PLACE"
mount -T "$WORK/fstab" "$PLACE"
[ "$(cat "$PLACE/file" | wc -l)" = 2 ] || fail 'what was written is lost'
umount -l "$PLACE"
while pgrep -f "mount --cluster $ID" >/dev/null; do sleep 0.1; done
"#,
    );
}

#[test]
fn what_can_t_be_mounted_is_said_with_the_reason() {
    let servers = Servers::start(&[]);
    run(
        &servers,
        r#"
at() { mount -t atoll -o "metadata=$METADATA,key=$WORK/key$1" "atoll:$ID" "$PLACE"; }
refused "'strictatime' isn't known" at ,strictatime
refused "key=<file> is missing" mount -t atoll -o "metadata=$METADATA" "atoll:$ID" "$PLACE"
refused "metadata=<host:port> is missing" mount -t atoll -o "key=$WORK/key" "atoll:$ID" "$PLACE"
refused "cluster's id" mount -t atoll -o "metadata=$METADATA,key=$WORK/key" host:/export "$PLACE"
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$WORK/other"
refused "mount.atoll: $PLACE: " at ",key=$WORK/other"
touch "$PLACE/content"
refused "isn't empty" at ''
rm "$PLACE/content"
mount -f -t atoll -o "metadata=$METADATA,key=$WORK/key" "atoll:$ID" "$PLACE"
[ -z "$(grep " $PLACE " /proc/self/mounts)" ] || fail 'a rehearsal mounted'
if pgrep -f "mount --cluster" >/dev/null; then fail 'a process is left'; fi
at ''
umount "$PLACE"
"#,
    );
}
