#!/bin/sh
# Writes .env beside compose.yaml: random passwords, and the addresses that follow from them.
set -eu
cd "$(dirname "$0")"
if [ -e .env ]; then
    echo "docker/.env is there already; Redis, the store and Grafana know these secrets" >&2
    exit 1
fi
secret() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
umask 077
redis=$(secret)
cat >.env <<EOF
COMPOSE_PROJECT_NAME=ppv

REDIS_PASSWORD=$redis
FLOWER_PASSWORD=$(secret)
GRAFANA_PASSWORD=$(secret)

PPV_BROKER_URL=redis://:$redis@redis:6379/0
PPV_STORE_URL=s3://ppv
PPV_S3__ENDPOINT=http://s3:8333
PPV_S3__ACCESS_KEY=$(secret)
PPV_S3__SECRET_KEY=$(secret)
EOF
echo "wrote docker/.env; Flower's user is ppv, Grafana's admin"
