# modelpress: the one description of the environment.
#   dev      everything that builds, tests and checks the tree; the source is mounted at /src (see ./dev)
#   build    compiles the release binaries from the copied tree
#   runtime  what a cluster runs: non-root, works with a read-only root file system, /data is the only volume
# BASE is any Debian trixie image; where no image registry can be reached ./dev makes one with mmdebstrap.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS dev
ENV DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
RUN apt-get update && apt-get install -y --no-install-recommends \
      g++ cmake pkgconf ninja-build ccache mold clang clang-format clang-tidy libclang-rt-19-dev git ca-certificates \
      libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev libabsl-dev \
      libonnx-dev libonnxruntime-dev prometheus-cpp-dev libgtest-dev libgmock-dev libbenchmark-dev libhwy-dev \
      libsqlite3-dev libpq-dev nlohmann-json3-dev libcli11-dev libssl-dev libseccomp-dev libcjose-dev libzip-dev \
      bubblewrap postgresql kustomize strace procps \
      python3-torch libopenblas0-pthread python3-onnx python3-onnxruntime python3-grpcio \
      python3-googleapis-common-protos python3-sklearn python3-safetensors python3-pytest python3-pytest-asyncio \
      python3-tqdm python3-pil python3-pip python3-venv python3-setuptools python3-wheel mypy \
    && rm -rf /var/lib/apt/lists/*
# Debian has no ruff. ./dev lends this machine's certificates, so that pip works behind a proxy that signs its own.
RUN pip install --no-cache-dir --break-system-packages $([ -s /run/host-ca.crt ] && echo --cert /run/host-ca.crt) ruff==0.17.5

FROM dev AS build
COPY . /src
# ./dev lends its compiler cache, which knows these files by the same paths; elsewhere it is empty.
RUN export MODELPRESS_BUILD_ROOT=/build CCACHE_DIR=/ccache CCACHE_BASEDIR=/src CCACHE_NOHASHDIR=1 \
    && cmake -S /src --preset release -DMODELPRESS_BUILD_TESTS=OFF >/tmp/cmake.log \
    && cmake --build /build/release --target modelpressd modelpress \
    && mkdir -p /out/bin && install -s /build/release/bin/modelpressd /build/release/bin/modelpress /out/bin/ \
    # The shared libraries that the two need, with the names their loader looks for.
    && mkdir -p /out/lib && ldd /out/bin/modelpressd /out/bin/modelpress | awk '$3 ~ "^/" {print $3}' | sort -u \
       | grep -vE '/(libc|libm|libdl|librt|libpthread|ld-linux[^/]*)\.so' | xargs -I{} cp -L {} /out/lib/

FROM ${BASE} AS runtime
RUN useradd --system --uid 10001 --home-dir /data modelpress && install -d -o modelpress -m 0750 /data
COPY --from=build /out/lib/ /usr/local/lib/modelpress/
COPY --from=build /out/bin/ /usr/local/bin/
RUN echo /usr/local/lib/modelpress > /etc/ld.so.conf.d/modelpress.conf && ldconfig
USER 10001
VOLUME /data
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=3s CMD ["modelpressd", "health", "--target=localhost:50052"]
ENTRYPOINT ["modelpressd"]
# As it stands this does not start: whoever reaches 0.0.0.0 must be told apart, so the server wants certificates and credentials, as
# flags of a command of one's own or as MODELPRESSD_TLS_CERT, MODELPRESSD_TLS_KEY and MODELPRESSD_CREDENTIALS_FILE. For a trial on
# one machine, its port published there alone: MODELPRESSD_INSECURE_PLAINTEXT=true. See docs/server.md, "In a container".
CMD ["serve", "--data_dir=/data", "--listen=0.0.0.0:50051", "--health_listen=localhost:50052", "--metrics_listen=0.0.0.0:9464"]
