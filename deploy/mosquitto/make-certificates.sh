#!/bin/sh
# Makes and renews the certificates of a plant's broker and stations, with openssl 1.1.1 or newer.
#
#   make-certificates.sh [-C DIR] [-d DAYS] ca [NAME]               the plant's own certificate authority, once
#   make-certificates.sh [-C DIR] [-d DAYS] server HOST [HOST|IP…]  the broker; every name and address clients use for it
#   make-certificates.sh [-C DIR] [-d DAYS] station SITE/LINE/NAME… one for each station
#   make-certificates.sh [-C DIR] [-d DAYS] client NAME…            plant software, operators
#   make-certificates.sh [-C DIR] revoke FILE.crt…                  for a device that was lost or replaced
#   make-certificates.sh [-C DIR] crl                               the list of what was revoked, anew
#
# -C DIR   folder, ./certificates unless given. DIR/ca holds the authority's key: keep the folder off the broker and off
#          the stations, on a machine that few people reach, and keep a copy.
# -d DAYS  validity: 3650 for the authority, 825 for the rest. What is still good for more than 30 days is left as it is,
#          so running a command again is harmless, and running it yearly from a calendar renews all in time.
#
# To the broker go server/server.{crt,key} and ca.{crt,crl}; to a station stations/SITE/LINE/NAME/{ca.crt,client.crt,client.key}.
set -eu
umask 077

fail() { echo "error: $*" >&2; exit 1; }
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "$0"; exit "$1"; }

dir=certificates days=
while getopts C:d:h option; do
  case $option in
    C) dir=$OPTARG ;;
    d) days=$OPTARG ;;
    h) usage 0 ;;
    *) usage 2 >&2 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || usage 2 >&2
command=$1
shift
case $days in *[!0-9]* | ?????*) fail "-d $days: give a number of days, at most 9999" ;; esac
command -v openssl >/dev/null || fail "openssl is missing: apt-get install openssl"
renew_seconds=$((30 * 24 * 3600))

ca=$dir/ca
log=
work=
trap 'rm -rf "$log" "$work"' EXIT
log=$(mktemp)
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "openssl refused; nothing was changed"; }; }

new_key() { quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

need_ca() { [ -f "$ca/ca.key" ] || fail "$dir has no authority yet; make it with: $0 -C $dir ca"; }

make_crl() {
  # It must outlive the visits of whoever runs this: a broker with an expired list refuses everybody.
  quietly openssl ca -config "$ca/openssl.cnf" -gencrl -crldays 3650 -out "$ca/new.crl"
  chmod 644 "$ca/new.crl"
  mv "$ca/new.crl" "$dir/ca.crl"
}

make_ca() {
  name=${1:-CBiGAN station plant CA}
  case $name in '' | *[!A-Za-z0-9\ ._-]*) fail "'$name': letters, digits, spaces, '.', '_' and '-'" ;; esac
  if [ -e "$ca/ca.key" ] || [ -e "$dir/ca.crt" ]; then
    echo "kept: $dir/ca.crt ($(openssl x509 -in "$dir/ca.crt" -noout -enddate)); an authority is never replaced, as all" \
      "its certificates would be worthless. For a new one choose another folder (-C)"
    return
  fi
  mkdir -p "$ca/issued"
  chmod 755 "$dir"
  cat >"$ca/openssl.cnf" <<CNF
[ca]
default_ca = plant
[plant]
dir = $(cd "$ca" && pwd)
database = \$dir/index.txt
new_certs_dir = \$dir/issued
certificate = \$dir/ca.crt
private_key = \$dir/ca.key
rand_serial = yes
default_md = sha256
default_days = 825
unique_subject = no
policy = name_only
copy_extensions = none
[name_only]
commonName = supplied
[ca_extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[req]
distinguished_name = no_questions
[no_questions]
CNF
  : >"$ca/index.txt"
  new_key "$ca/ca.key"
  quietly openssl req -new -x509 -config "$ca/openssl.cnf" -extensions ca_extensions -sha256 -key "$ca/ca.key" \
    -subj "/CN=$name" -days "${days:-3650}" -out "$ca/ca.crt"
  make_crl
  chmod 644 "$ca/ca.crt"
  cp -p "$ca/ca.crt" "$dir/ca.crt"
  echo "made: $dir/ca.crt ($(openssl x509 -in "$dir/ca.crt" -noout -enddate)); guard $ca/ca.key"
}

# issue FOLDER STEM COMMON-NAME USAGE [SUBJECT-ALTERNATIVE-NAMES]
issue() {
  need_ca
  [ ${#3} -le 64 ] || fail "$3: ${#3} characters; a certificate's name may have 64"
  if [ -f "$1/$2.crt" ] && [ -f "$1/$2.key" ] \
    && openssl x509 -in "$1/$2.crt" -noout -checkend $renew_seconds >/dev/null \
    && [ "$(names_in "$1/$2.crt")" = "$(wanted_names "${5:-}")" ] && not_revoked "$1/$2.crt"; then
    echo "kept: $1/$2.crt ($(openssl x509 -in "$1/$2.crt" -noout -enddate))"
    return
  fi
  mkdir -p "$1"
  chmod 755 "$dir" "$1"
  work=$(mktemp -d "$1/.new.XXXXXX")
  new_key "$work/key"
  # The subject from a file: on the command line '/' would separate its parts.
  printf '[req]\nprompt = no\ndistinguished_name = name\n[name]\ncommonName = %s\n' "$3" >"$work/request.cnf"
  quietly openssl req -new -config "$work/request.cnf" -utf8 -key "$work/key" -out "$work/request"
  {
    printf 'basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n'
    printf 'extendedKeyUsage = %s\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid\n' "$4"
    [ -z "${5:-}" ] || printf 'subjectAltName = %s\n' "$5"
  } >"$work/extensions"
  quietly openssl ca -batch -notext -config "$ca/openssl.cnf" -days "${days:-825}" -extfile "$work/extensions" \
    -in "$work/request" -out "$work/crt"
  cp "$ca/ca.crt" "$work/ca.crt"
  chmod 644 "$work/crt" "$work/ca.crt"
  # The key first: interrupted in between, the pair does not match, which the next run sees below.
  mv "$work/key" "$1/$2.key"
  mv "$work/crt" "$1/$2.crt"
  mv "$work/ca.crt" "$1/ca.crt"
  rm -rf "$work"
  work=
  echo "made: $1/$2.crt for $3 ($(openssl x509 -in "$1/$2.crt" -noout -enddate))"
}

names_in() {
  openssl x509 -in "$1" -noout -ext subjectAltName 2>/dev/null \
    | sed -n 's/IP Address:/IP:/g;s/^ *\(DNS\|IP\):/\1:/p' | tr -d ' '
}
wanted_names() { printf '%s' "$1" | tr -d ' '; }
not_revoked() {
  serial=$(openssl x509 -in "$1" -noout -serial)
  ! grep -q "^R.*[[:space:]]${serial#serial=}[[:space:]]" "$ca/index.txt"
}

make_server() {
  [ $# -gt 0 ] || fail "name the broker: $0 server broker.plant.example 192.0.2.7"
  names=
  for name; do
    case $name in
      '' | -* | *[!A-Za-z0-9.:-]*) fail "'$name' is no host name and no address" ;;
      *:* | *[!0-9.]*) case $name in *:*) kind=IP ;; *) kind=DNS ;; esac ;;
      *) kind=IP ;;
    esac
    names="${names:+$names,}$kind:$name"
  done
  issue "$dir/server" server "$1" serverAuth "$names"
}

level='[A-Za-z0-9][A-Za-z0-9._-]\{0,63\}'
make_stations() {
  [ $# -gt 0 ] || fail "name the station as its settings do: $0 station SITE/LINE/NAME"
  for name; do
    printf '%s\n' "$name" | grep -qx "$level/$level/$level" \
      || fail "'$name': must be SITE/LINE/NAME, each as in [station] of the station's settings"
  done
  for name; do issue "$dir/stations/$name" client "$name" clientAuth; done
}

make_clients() {
  [ $# -gt 0 ] || fail "name the client: $0 client scada"
  for name; do
    printf '%s\n' "$name" | grep -qx "$level" || fail "'$name': letters, digits, '.', '_' and '-', at most 64"
  done
  for name; do issue "$dir/clients/$name" client "$name" clientAuth; done
}

revoke() {
  need_ca
  [ $# -gt 0 ] || fail "name the certificates: $0 revoke $dir/stations/SITE/LINE/NAME/client.crt"
  for file; do
    [ -f "$file" ] || fail "$file: no such certificate; copies of all that were issued are in $ca/issued"
    if not_revoked "$file"; then
      quietly openssl ca -config "$ca/openssl.cnf" -revoke "$file"
      echo "revoked: $file"
    else
      echo "kept: $file is revoked"
    fi
  done
  make_crl
  echo "made: $dir/ca.crl; copy it to the broker and restart it"
}

case $command in
  ca) make_ca "$@" ;;
  server) make_server "$@" ;;
  station) make_stations "$@" ;;
  client) make_clients "$@" ;;
  revoke) revoke "$@" ;;
  crl) need_ca; make_crl; echo "made: $dir/ca.crl" ;;
  *) usage 2 >&2 ;;
esac
