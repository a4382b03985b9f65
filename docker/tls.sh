#!/bin/sh
# Makes tls/: a CA of the fleet's own, and certificates for Redis and the store, for compose.tls.yaml.
#
#   ./tls.sh NAME...     the names and addresses by which other machines reach this one
#
# Called again, it makes new certificates by the same CA: then start redis and s3 again. They hold for
# 397 days. ca.key is needed for that alone: keep it elsewhere if you can.
set -eu
cd "$(dirname "$0")"
if [ $# -eq 0 ]; then
    echo "usage: ./tls.sh NAME...: by which other machines reach this one" >&2
    exit 2
fi
names=
for name in "$@"; do
    case $name in
        "" | -* | *[!A-Za-z0-9.:-]*) echo "no name of a machine: $name" >&2 && exit 2 ;;
        *:*) names="$names,IP:$name" ;;
        *[!0-9.]*) names="$names,DNS:$name" ;;
        *) names="$names,IP:$name" ;;
    esac
done
umask 077
mkdir -p tls
cd tls
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
if [ ! -e ca.pem ]; then
    # shellcheck disable=SC2086 # words of their own
    openssl req -x509 $key -days 3650 -subj "/CN=ppv fleet" -keyout ca.key -out ca.pem \
        -addext keyUsage=critical,keyCertSign,cRLSign 2>/dev/null
elif [ ! -e ca.key ]; then
    echo "docker/tls/ca.key is elsewhere: bring it back, or remove docker/tls for a new CA" >&2
    exit 1
fi
for service in redis s3; do
    # shellcheck disable=SC2086
    openssl req $key -subj "/CN=$service" -keyout $service.key.new -out $service.csr 2>/dev/null
    cat >$service.ext <<EOF
subjectAltName=DNS:$service,DNS:localhost,IP:127.0.0.1$names
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
EOF
    openssl x509 -req -in $service.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 397 \
        -extfile $service.ext -out $service.pem.new 2>/dev/null
    mv $service.key.new $service.key
    mv $service.pem.new $service.pem
    rm $service.csr $service.ext
done
# The servers' users in their containers read these; on this machine the folder is shut.
chmod 644 ca.pem redis.pem redis.key s3.pem s3.key
echo "wrote docker/tls/ for redis, s3, localhost, 127.0.0.1$names"
