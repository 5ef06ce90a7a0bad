#!/bin/sh
# Install the packages whose programs the tests run: Debian's where we may (root), npm's into .venv/node. What is there
# already, from wherever, is left alone. Tests that need a missing program are skipped and say so; mosquitto alone is not
# optional.
set -u
here=$(dirname "$0")
node=$here/../.venv/node
missing=
modules=
for package in $(cat "$here/test-packages.txt"); do
  case $package in
    npm:*)
      package=${package#npm:}
      grep -qsx "$package" "$node/installed.txt" || modules="$modules $package"
      ;;
    *)
      command -v "$package" >/dev/null && continue
      dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
      ;;
  esac
done

if [ -z "$missing" ]; then
  :
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  # Programs, not services: no broker, database or Prometheus shall start on this machine because tests want to run one.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
  fi
  # shellcheck disable=SC2086 # a list of words
  { apt-get update -q && apt-get install -y -q --no-install-recommends $missing; } >/tmp/apt.$$ 2>&1 \
    || { tail -n 20 /tmp/apt.$$ >&2; echo "warning: apt-get could not install:$missing" >&2; }
  rm -f /tmp/apt.$$
else
  echo "note: for the tests with real brokers and streams, as root: apt-get install$missing" >&2
fi

if [ -n "$modules" ] && command -v npm >/dev/null; then
  # No scripts of packages are run, some of which would tell their makers.
  # shellcheck disable=SC2086
  if npm install --prefix "$node" --no-audit --no-fund --no-update-notifier --ignore-scripts --omit=optional \
    --loglevel=error $modules >/tmp/npm.$$ 2>&1; then
    grep '^npm:' "$here/test-packages.txt" | sed 's/^npm://' >"$node/installed.txt"
  else
    tail -n 20 /tmp/npm.$$ >&2
    echo "warning: npm could not install:$modules" >&2
  fi
  rm -f /tmp/npm.$$
fi

command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] \
  || { echo "error: the tests need mosquitto; as root: apt-get install mosquitto mosquitto-clients" >&2; exit 1; }
