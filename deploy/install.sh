#!/bin/sh
# Installs the station as a systemd service on a line device. As root:
#
#   deploy/install.sh [install]        install, or upgrade; running it again does no harm
#   deploy/install.sh add NAME         settings for a camera: /etc/cbigan-station/NAME.toml, to be filled in
#   deploy/install.sh rollback         back to the version before the last upgrade
#   deploy/install.sh remove           stop and remove the program; settings, secrets and state stay
#   deploy/install.sh remove --purge   them too
#
# Options of install:
#   --source WHAT     checkout, wheel or name for pip (this checkout)
#   --extras LIST     the package's extras, such as cuda,tensorrt (none)
#   --python PYTHON   interpreter (python3)
# pip's own environment variables hold, for devices without internet: PIP_NO_INDEX=1 PIP_FIND_LINKS=/media/wheels
# On a Jetson deploy/jetson/install.py does the Python part and leaves JetPack's OpenCV and TensorRT as they are.
#
# An upgrade builds the new version beside the old one, switches a link, and restarts the stations that run. If one of
# them does not come up, everything is switched back. Settings and state are never touched.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
prefix=/opt/cbigan-station
versions=$prefix.versions
etc=/etc/cbigan-station
state=/var/lib/cbigan-station
cache=/var/cache/cbigan-station
units=/usr/local/lib/systemd/system
user=cbigan-station
start_seconds=${STATION_INSTALL_START_SECONDS:-90}

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit "$1"; }
have_systemd() { [ -d /run/systemd/system ]; }
running() { systemctl list-units --plain --no-legend --state=active,activating,reloading,failed 'station@*.service' | cut -d' ' -f1; }
property() { systemctl show --property="$2" --value "$1"; }

prepare() {
  [ ! -e "$prefix" ] || [ -L "$prefix" ] \
    || fail "$prefix was not made by this script (deploy/jetson/install.py makes one like it); remove it first: rm -r $prefix"
  if have_systemd; then
    release=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    [ "$release" -ge 249 ] || fail "systemd $release is too old: 249 (Ubuntu 22.04, Debian 12) is the oldest that will do"
  fi
  # The unit names these groups, and one that is missing would keep it from starting.
  for group in video render; do
    getent group "$group" >/dev/null || groupadd --system "$group"
  done
  getent passwd "$user" >/dev/null \
    || useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$user"
  mkdir -p "$versions" "$units" "$etc/credentials" "$etc/tls"
  chown root:"$user" "$etc" "$etc/tls"
  chmod 0750 "$etc" "$etc/tls"
  chmod 0700 "$etc/credentials"
  # What an installation that was broken off has left.
  for old in "$versions"/*/; do
    [ -e "$old" ] && [ ! -e "$old.complete" ] && rm -rf "$old"
  done
  return 0
}

build() { # into $new; returns false where it fails, as `set -e` does not hold in a condition
  if [ -e /etc/nv_tegra_release ]; then
    "$python" "$here/jetson/install.py" --prefix "$new" --source "$source" || return
  else
    "$python" -m venv "$new" || { echo "$python has no venv; on Debian and Ubuntu: apt-get install python3-venv" >&2; return 1; }
    "$new/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$source${extras:+[$extras]}" || return
  fi
  "$new/bin/station" --version || return
  cp "$here/systemd/station@.service" "$new/station@.service" || return
  # The stations' user must be able to read it, whatever the umask of who installs.
  chmod -R go+rX "$new" || return
  touch "$new/.complete"
}

switch_to() { # a version's folder
  ln -sfn "$1" "$prefix.new"
  mv -T "$prefix.new" "$prefix"
  cp "$1/station@.service" "$units/.station@.service.new"
  chmod 0644 "$units/.station@.service.new"
  mv "$units/.station@.service.new" "$units/station@.service"
  if have_systemd; then systemctl daemon-reload; fi
}

restart_all() { # units; false if one does not come up
  old=
  for unit; do
    old="$old $(property "$unit" InvocationID)"
    systemctl reset-failed "$unit" 2>/dev/null || true
    systemctl restart --no-block "$unit"
  done
  for unit; do
    left=$start_seconds
    while :; do
      # The restart is only queued: until it has begun, the state is that of the run before.
      case "$old " in
        *" $(property "$unit" InvocationID) "*) state=queued ;;
        *) state=$(property "$unit" ActiveState) ;;
      esac
      case $state in
        active) echo "$unit is up"; break ;;
        failed | inactive) echo "$unit does not come up: journalctl -u $unit" >&2; return 1 ;;
      esac
      if [ "$(property "$unit" NRestarts)" -gt 0 ]; then
        echo "$unit falls as soon as it starts: journalctl -u $unit" >&2
        return 1
      fi
      left=$((left - 1))
      if [ "$left" -le 0 ]; then
        # Building an engine takes minutes, and a camera may be off: neither is the new version's fault.
        echo "$unit is still starting: $(property "$unit" StatusText)"
        break
      fi
      sleep 1
    done
  done
}

install_it() {
  source=$(dirname "$here") python=python3 extras=
  while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || usage 2 >&2
    case $1 in
      --source) source=$2 ;;
      --python) python=$2 ;;
      --extras) extras=$2 ;;
      *) usage 2 >&2 ;;
    esac
    shift 2
  done
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is older than Python 3.10 or missing"
  prepare
  new=$versions/$(date -u +%Y%m%dT%H%M%SZ)
  while [ -e "$new" ]; do new=$new+; done
  before=$(readlink "$prefix" || true)
  if ! build; then
    rm -rf "$new"
    fail "nothing was changed${before:+: $before stays in place}"
  fi
  stations=
  if have_systemd; then stations=$(running); fi
  switch_to "$new"
  # shellcheck disable=SC2086 # a list of words
  if [ -n "$stations" ] && ! restart_all $stations; then
    if [ -n "$before" ]; then
      switch_to "$before"
      rm -rf "$new"
      restart_all $stations || true
      fail "the new version did not come up; $before is back in place"
    fi
    fail "a station did not come up"
  fi
  if [ -n "$before" ]; then ln -sfn "$before" "$versions/previous"; fi
  forget_old
  echo "installed: $("$prefix/bin/station" --version)"
  [ -n "$stations" ] || echo "next: $0 add NAME"
}

forget_old() { # all but what is in use and what rollback goes back to
  for old in "$versions"/*/; do
    old=${old%/}
    case $old in
      "$versions/previous" | "$(readlink "$prefix")" | "$(readlink "$versions/previous" || true)") ;;
      *) rm -rf "$old" ;;
    esac
  done
}

rollback() {
  before=$(readlink "$versions/previous") || fail "there is no version to go back to"
  now=$(readlink "$prefix")
  stations=
  if have_systemd; then stations=$(running); fi
  switch_to "$before"
  ln -sfn "$now" "$versions/previous"
  # shellcheck disable=SC2086 # a list of words
  [ -z "$stations" ] || restart_all $stations || fail "a station did not come up"
  echo "installed: $("$prefix/bin/station" --version); again for the one that was replaced"
}

add() {
  [ $# -eq 1 ] || usage 2 >&2
  printf '%s\n' "$1" | grep -qx '[A-Za-z0-9][A-Za-z0-9._-]\{0,63\}' \
    || fail "'$1': letters, digits, '.', '_' and '-', at most 64; it names the unit station@NAME and the MQTT topic"
  [ -L "$prefix" ] || fail "install first: $0"
  mkdir -p "$etc/credentials/$1" "$etc/tls/$1"
  chown root:"$user" "$etc/tls/$1"
  chmod 0750 "$etc/tls/$1"
  chmod 0700 "$etc/credentials/$1"
  if [ -e "$etc/$1.toml" ]; then
    echo "kept: $etc/$1.toml"
  else
    sed "s/@NAME@/$1/g" "$here/station.example.toml" >"$etc/.$1.toml.new"
    chown root:"$user" "$etc/.$1.toml.new"
    chmod 0640 "$etc/.$1.toml.new"
    mv "$etc/.$1.toml.new" "$etc/$1.toml"
    echo "made: $etc/$1.toml"
  fi
  echo "fill it in, then: systemctl enable --now station@$1"
}

remove() {
  purge=
  case ${1:-} in '') ;; --purge) purge=yes ;; *) usage 2 >&2 ;; esac
  if have_systemd; then
    for unit in $(running); do systemctl stop "$unit"; systemctl reset-failed "$unit" 2>/dev/null || true; done
  fi
  for link in /etc/systemd/system/*.wants/station@*.service; do
    if [ -L "$link" ]; then rm "$link"; fi
  done
  rm -rf "$prefix" "$versions" "$units/station@.service" "$cache"
  if have_systemd; then systemctl daemon-reload; fi
  if [ -n "$purge" ]; then
    rm -rf "$etc" "$state" /etc/systemd/system/station@*.service.d
    if getent passwd "$user" >/dev/null; then userdel "$user"; fi
    echo "removed, with settings, secrets and state"
  else
    echo "removed; settings and secrets are in $etc, state is in $state"
  fi
}

command=install
case ${1:-} in
  -h | --help) usage 0 ;;
  --* | '') ;;
  *) command=$1; shift ;;
esac
case $command in install | add | rollback | remove) ;; *) usage 2 >&2 ;; esac
[ "$(id -u)" = 0 ] || fail "must be run as root: sudo $0 $command $*"
case $command in install) install_it "$@" ;; *) "$command" "$@" ;; esac
