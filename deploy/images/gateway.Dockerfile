# The gateway alone: no eBPF programs, no shell, not root.
#   docker build --file deploy/images/gateway.Dockerfile --tag pd-router:0.2.0 .
FROM rust:1.95-bookworm AS build
# Not the newest stable one, for which rust-toolchain.toml would send.
ENV RUSTUP_TOOLCHAIN=1.95.0
WORKDIR /src
COPY . .
# The commit that --version and metrics name: --build-arg COMMIT="$(git rev-parse HEAD)".
ARG COMMIT=unknown
ENV PD_ROUTER_COMMIT=$COMMIT
RUN cargo build --locked --release --package pd-router --bin pd-router

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /src/target/release/pd-router /usr/local/bin/pd-router
ENTRYPOINT ["/usr/local/bin/pd-router"]
