# The server in a container, for pools whose workers are elsewhere (`docker`, `exec`): processes of `local` would live
# and die with the container.
#
#   docker build -t pool .
#   docker run -d --init --name pool --network host -v pool-state:/var/lib/pool -v "$PWD/pools:/etc/pool:ro" \
#     -v /var/run/docker.sock:/var/run/docker.sock --group-add "$(stat -c %g /var/run/docker.sock)" pool
#   docker exec pool pool status
#
# The host's network: the server lets in this machine only. And the host's processes (--pid host) when commands outside
# the container work on the same state: whether the holder of a lock still lives is seen in /proc.
ARG BUILD_IMAGE=rust:1.90-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin pool \
 && mkdir -p /out/usr/local/bin /out/var/lib/pool /out/etc/pool \
 && cp target/release/pool /out/usr/local/bin/pool \
 && chown 10001:10001 /out/var/lib/pool

FROM ${BASE_IMAGE}
COPY --from=build /out/ /
USER 10001:10001
WORKDIR /var/lib/pool
VOLUME /var/lib/pool
# No signal is lost in a shell: SIGTERM ends the server as it should end.
ENTRYPOINT ["/usr/local/bin/pool"]
CMD ["serve", "/etc/pool", "--log-format", "json"]
