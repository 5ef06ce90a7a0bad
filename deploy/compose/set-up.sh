#!/bin/sh
# Makes what deploy/compose.yaml needs for one line on one box: settings, certificates, a password. Needs openssl.
#
#   deploy/compose/set-up.sh [-d DIR] SITE LINE STATION
#
# -d DIR  where all of it goes, deploy/line unless given: settings to be edited, secrets, and later what the services
#         keep. Back it up, keep it to yourself. Running this again renews certificates and leaves alone what is there.
set -eu
umask 077

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit "$1"; }

here=$(cd "$(dirname "$0")" && pwd)
deploy=$(dirname "$here")
dir=$deploy/line
while getopts d:h option; do
  case $option in
    d) dir=$OPTARG ;;
    h) usage 0 ;;
    *) usage 2 >&2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# = 3 ] || usage 2 >&2
site=$1 line=$2 station=$3
for name; do
  printf '%s\n' "$name" | grep -qx '[A-Za-z0-9][A-Za-z0-9._-]\{0,63\}' \
    || fail "'$name': letters, digits, '.', '_' and '-', at most 64"
done
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# Stations and the dashboard log in to the broker with certificates; no service has a password that another must know.
certificates() { "$deploy/mosquitto/make-certificates.sh" -C "$dir/certificates" "$@"; }
certificates ca "Line $site $line"
certificates server mosquitto localhost
certificates station "$site/$line/$station"
certificates client operator
mkdir -p "$dir/mosquitto/certs" "$dir/station/tls" "$dir/dashboard/tls"
for file in ca.crt ca.crl server/server.crt server/server.key; do
  cp "$dir/certificates/$file" "$dir/mosquitto/certs/"
done
for file in ca.crt client.crt client.key; do
  cp "$dir/certificates/stations/$site/$line/$station/$file" "$dir/station/tls/"
  cp "$dir/certificates/clients/operator/$file" "$dir/dashboard/tls/"
done
# People and programs without a certificate, on port 8884: docker compose exec mosquitto mosquitto_passwd …
[ -e "$dir/mosquitto/passwords" ] || : >"$dir/mosquitto/passwords"

[ -e "$dir/grafana_password" ] || openssl rand -hex 16 >"$dir/grafana_password"

fill() {
  [ -e "$2" ] && { echo "kept: $2"; return; }
  sed "s/@SITE@/$site/g; s/@LINE@/$line/g; s/@STATION@/$station/g" "$1" >"$2"
  echo "made: $2"
}
fill "$here/station.toml" "$dir/station/station.toml"
fill "$here/dashboard.toml" "$dir/dashboard/dashboard.toml"
mkdir -p "$dir/prometheus"
sed "s/127\.0\.0\.1:9847/station:9847/; s/site: mill/site: $site/; s/line: \"3\"/line: \"$line\"/; s/station: left/station: $station/" \
  "$deploy/prometheus/prometheus.yml" >"$dir/prometheus/prometheus.yml"
cp "$deploy/prometheus/station.rules.yml" "$dir/prometheus/"
[ -e "$dir/station/bundle" ] || cp -R "$deploy/../engines/bundled/brick" "$dir/station/bundle"

# Made here, as you: services run as you, and would not be able to write into what Docker makes as root.
for service in mosquitto station dashboard prometheus grafana; do mkdir -p "$dir/$service/data"; done

# Root's services shall not be root: a number that is nobody's here owns their files.
if [ "$(id -u)" = 0 ]; then
  as=10001:10001
  chmod 711 "$dir"
  chown -R "$as" "$dir/mosquitto" "$dir/station" "$dir/dashboard" "$dir/prometheus" "$dir/grafana" "$dir/grafana_password"
else
  as=$(id -u):$(id -g)
fi
printf 'LINE=%s\nLINE_USER=%s\n' "$dir" "$as" >"$dir/.env"
cat <<DONE

Next:
  1. $dir/station/station.toml: the camera. Until then a sample line with planted defects runs.
  2. docker compose --env-file $dir/.env -f $deploy/compose.yaml up --build --detach
  3. docker compose --env-file $dir/.env -f $deploy/compose.yaml run --rm dashboard dashboard --config /etc/cbigan-station/dashboard.toml --set-password operator
  4. http://127.0.0.1:8080 is the dashboard; http://127.0.0.1:3000 is Grafana: user admin, password in $dir/grafana_password
DONE
