#!/bin/sh
# Install the Debian packages whose programs the tests run, where we may (root); else say what to do.
# Tests that need a missing program are skipped and say so; mosquitto alone is not optional.
set -u
here=$(dirname "$0")
missing=
for package in $(cat "$here/test-packages.txt"); do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086 # a list of words
  { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/tmp/apt.$$ 2>&1 \
    || { tail -n 20 /tmp/apt.$$ >&2; echo "warning: apt-get could not install:$missing" >&2; }
  rm -f /tmp/apt.$$
else
  echo "note: for the tests with real brokers and streams, as root: apt-get install$missing" >&2
fi
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] \
  || { echo "error: the tests need mosquitto; as root: apt-get install mosquitto mosquitto-clients" >&2; exit 1; }
