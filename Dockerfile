# The image of the agent. The last stage is empty but for this project's programs, the shared libraries that they name
# (glibc, libgcc), Debian's CA roots, and the licences of all that: there is no shell in it and nothing else that could
# be run.
#
# It builds for the machine's own architecture, amd64 or arm64. `deploy/image/assemble` makes the same last stage from
# programs that are built already, by the same script and by these very lines; tests/image/check holds the two together.

# The list of parts (SBOM) of a release is of the sources with their Cargo.lock and of the stage that builds, too: in
# the last stage a scanner finds the crates of each program and the packages of libraries and roots, but not what
# `latchkey` has in itself of glibc and libgcc.
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
FROM rust:1.95-slim-bookworm AS build
ARG BUILDKIT_SBOM_SCAN_STAGE=true
# What of Debian's gets into the image is as new as Debian has it: the base is built anew seldom.
RUN apt-get update \
    && apt-get upgrade --yes \
    && apt-get install --yes --no-install-recommends ca-certificates cmake g++ make python3 \
    && rm -rf /var/lib/apt/lists/*
# It writes into each program which crates it is made of.
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /src
COPY . .
# The command is linked whole, so that it runs in any image that it is copied to. Two platforms that are built at once
# have the same caches, so one waits for the other. What is copied keeps its times, by which cargo would take an older
# checkout for what it has built already.
RUN --mount=type=cache,id=latchkey-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=latchkey-target,target=/src/target,sharing=locked \
    find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo auditable build --locked --profile dist --package latchkey-agent --bin latchkey-agent --bin latchkey-csi \
    && host=$(rustc -vV | sed -n 's/^host: //p') \
    && RUSTFLAGS='-C target-feature=+crt-static' cargo auditable build --locked --profile dist --target "$host" \
        --package latchkey-client --features cli --bin latchkey \
    && mkdir /programs \
    && cp target/dist/latchkey-agent target/dist/latchkey-csi "target/$host/dist/latchkey" /programs/ \
    && deploy/image/rootfs /programs /rootfs

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
# Of the programs with their crates, and of what is Debian's; the texts are in /usr/share/doc.
ARG OURS="Apache-2.0 AND BSD-3-Clause AND ISC AND MIT AND Unicode-3.0 AND Zlib"
ARG DEBIANS="LGPL-2.1-or-later AND GPL-3.0-or-later WITH GCC-exception-3.1 AND MPL-2.0"
LABEL org.opencontainers.image.title="latchkey" \
      org.opencontainers.image.description="Pods read their own namespace's cloud secrets over a Unix socket of the node" \
      org.opencontainers.image.licenses="${OURS} AND ${DEBIANS}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /rootfs/ /
# Root without capabilities: the directory of the socket belongs to root (deploy/manifests/40-daemonset.yaml).
USER 0:0
ENTRYPOINT ["/usr/bin/latchkey-agent"]
