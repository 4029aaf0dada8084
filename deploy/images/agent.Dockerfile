# The agent with the eBPF programs inside: no shell. It runs as root with the capabilities that
# deploy/base/agent.yaml names, and gives up the rest.
#   docker build --file deploy/images/agent.Dockerfile --tag pd-router-agent:0.2.0 .
FROM rust:1.95-bookworm AS build
# Not the newest stable one, for which rust-toolchain.toml would send.
ENV RUSTUP_TOOLCHAIN=1.95.0
# bpf-linker reads what this nightly's LLVM wrote. Its release brings an LLVM of its own.
ARG NIGHTLY=nightly
RUN rustup toolchain install "$NIGHTLY" --profile minimal --component rust-src \
    && cargo install bpf-linker --version 0.13.0 --locked
WORKDIR /src
COPY . .
# The commit that --version and metrics name: --build-arg COMMIT="$(git rev-parse HEAD)".
ARG COMMIT=unknown
ENV PD_ROUTER_COMMIT=$COMMIT
RUN cargo xtask build-ebpf \
    && cargo build --locked --release --features embed-ebpf --package pd-router --bin pd-router

FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/target/release/pd-router /usr/local/bin/pd-router
ENTRYPOINT ["/usr/local/bin/pd-router"]
