#!/bin/bash
# Stops the ceph daemons whose environment says CEPH_CONF=FOLDER/ceph.conf (what ceph_up.sh started, or a test restarted), then removes FOLDER.
# usage: ceph_down.sh FOLDER [keep]
D=$(realpath -m "${1:?folder}"); [ -f "$D/ceph.conf" ] || { echo "$D is no test cluster" >&2; exit 2; }
pids=()
# a daemon's pid file may be gone before it is (or not written yet): the environment of the process says whose it is
for f in /proc/[0-9]*/environ; do
  p=${f#/proc/}; p=${p%/environ}
  case "$(cat "/proc/$p/comm" 2>/dev/null)" in ceph-mon|ceph-osd|ceph-mgr) ;; *) continue ;; esac
  grep -zqxF "CEPH_CONF=$D/ceph.conf" "$f" 2>/dev/null && pids+=("$p")
done
((${#pids[@]})) && kill -9 "${pids[@]}" 2>/dev/null     # -9: nothing is kept, and an osd that waits for a mon does not end on TERM
for p in "${pids[@]}"; do for _ in $(seq 100); do [ -d "/proc/$p" ] && [ "$(cut -d' ' -f3 "/proc/$p/stat" 2>/dev/null)" != Z ] || break; sleep 0.02; done; done
[ "${2:-}" = keep ] || rm -rf "$D"
