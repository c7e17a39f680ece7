# The agent's image. The last stage is empty but for the agent's binary, the shared libraries that it names
# (glibc, libgcc) and Debian's CA roots: there is no shell in it and nothing else that could be run.
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --profile dist --package latchkey-agent --bin latchkey-agent \
    && deploy/image/rootfs target/dist/latchkey-agent /rootfs

FROM scratch
COPY --from=build /rootfs/ /
# Root without capabilities: the directory of the socket belongs to root (deploy/manifests/40-daemonset.yaml).
USER 0:0
ENTRYPOINT ["/usr/bin/latchkey-agent"]
