#!/bin/bash
# A real, tiny Ceph for tests: 1 mon + 1 osd (bluestore on a sparse file) [+ 1 mgr], loopback only, no systemd, root or not.
# usage: ceph_up.sh FOLDER [FIRST_PORT [LAST_PORT]] (a free one by itself)     env: MGR=0|1 (1)  OSD_GIB=8  POOLS="rbd backup"  PAXOS=0.05 (1 = as shipped)
# FOLDER must not exist. Everything is inside: ceph.conf, keyring, data, logs, pids. Uses 16 ports (mon first). Needs ceph-mon ceph-osd
# [ceph-mgr] ceph-common. Prints the path of ceph.conf. On failure what was started is stopped again and rc is not 0.
set -eEuo pipefail
D=$(realpath -m "${1:?folder}"); HERE=$(dirname "$(realpath "$0")")
free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }                 # nobody listens there
P=${2:-}; while [ -z "$P" ]; do P=$((20000 + RANDOM % 700 * 16)); free "$P" || P=; done
Q=${3:-$((P + 15))}; free "$P" || { echo "port $P is taken" >&2; exit 2; }
MGR=${MGR:-1}; GIB=${OSD_GIB:-8}; POOLS=${POOLS-rbd backup}; PAXOS=${PAXOS:-0.05}
[ $((Q - P)) -ge 7 ] || { echo "need 8 ports or more" >&2; exit 2; }
mkdir "$D" || exit 2; mkdir "$D"/{mon,mgr,osd0,run,log}; umask 077
trap '"$HERE/ceph_down.sh" "$D" keep >/dev/null 2>&1; echo "ceph_up.sh failed; see $D/log" >&2' ERR
FSID=$(cat /proc/sys/kernel/random/uuid); OSDUUID=$(cat /proc/sys/kernel/random/uuid)
cat > "$D/ceph.conf" <<C
[global]
fsid = $FSID
mon host = v1:127.0.0.1:$P
mon initial members = a
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = $((P + 1))
ms bind port max = $Q
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = $D/keyring
log file = $D/log/\$name.log
mon cluster log file = $D/log/cluster.log
admin socket =
pid file = $D/run/\$name.pid
run dir = $D/run
crash dir = $D/run
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = true
mon allow pool delete = true
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail warn = 1
mon data avail crit = 1
paxos propose interval = $PAXOS
paxos min wait = $PAXOS
rbd default features = 61
[client]
log file = /dev/null
[mon.a]
host = localhost
mon data = $D/mon
[mgr.x]
mgr data = $D/mgr
[osd.0]
osd data = $D/osd0
osd objectstore = bluestore
bluestore block size = $((GIB << 30))
bluestore block create = true
bluestore block db create = false
bluestore block wal create = false
bluestore cache autotune = false
bluestore cache size = 134217728
osd memory target = 939524096
C
export CEPH_CONF=$D/ceph.conf CEPH_ARGS=
cd /                                                          # Debian 13's osd looks for its classes in a relative lib/…
q() { "$@" >>"$D/log/up.out" 2>&1; }
q ceph-authtool -C "$D/keyring" --gen-key -n mon. --cap mon 'allow *'
q ceph-authtool "$D/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
KEY=$(ceph-authtool --gen-print-key)
q ceph-authtool -C "$D/osd0/keyring" -n osd.0 --add-key "$KEY"
q monmaptool --create --fsid "$FSID" --addv a "[v1:127.0.0.1:$P]" "$D/monmap"
q ceph-mon -i a --mkfs --monmap "$D/monmap" --keyring "$D/keyring"
q ceph-mon -i a
echo "{\"cephx_secret\": \"$KEY\"}" | q timeout 30 ceph --connect-timeout 10 osd new "$OSDUUID" -i -
if [ "$MGR" = 1 ]; then
  q ceph-authtool -C "$D/mgr/keyring" --gen-key -n mgr.x
  q timeout 30 ceph auth add mgr.x -i "$D/mgr/keyring" mon 'allow profile mgr' osd 'allow *'
  q ceph-mgr -i x --keyring "$D/mgr/keyring"
fi
truncate -s "${GIB}G" "$D/osd0/block"
q ceph-osd -i 0 --mkfs --osd-uuid "$OSDUUID" --keyring "$D/osd0/keyring"
q ceph-osd -i 0 --keyring "$D/osd0/keyring"
for pool in $POOLS; do
  q timeout 30 ceph osd pool create "$pool" 8 8 replicated
  q timeout 30 rbd pool init "$pool"                  # blocks until the osd serves the pool, so nothing else has to be waited for
done
echo "$CEPH_CONF"
