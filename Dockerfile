# The commands in a container; on CPUs, or on NVIDIA GPUs (cuda12, cuda13), whose wheels bring CUDA:
# the host needs its driver and the NVIDIA Container Toolkit alone.
#
#     docker build -t fcn-jax .
#     docker build -t fcn-jax:cuda --build-arg DEVICE=cuda13 .
#
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" fcn-jax train --config=quickstart
#     docker run --rm --gpus all --shm-size=8g … fcn-jax:cuda train …
#     docker run --rm -v "$PWD:/work" -p 127.0.0.1:7860:7860 fcn-jax serve runs/mine --host=0.0.0.0
FROM python:3.12-slim

ARG DEVICE=cpu
ARG EXTRAS=demo,export,coco,heic,tiff,geo,video,hub

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY fcn_jax fcn_jax
RUN case "$DEVICE" in \
        cpu) extras="$EXTRAS" ;; \
        cuda12 | cuda13) extras="$EXTRAS,$DEVICE" ;; \
        *) echo "DEVICE is cpu, cuda12 or cuda13, not $DEVICE" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir ".[$extras]" \
    && rm -rf /src

# Fetched weights and compiled programs, for whichever user runs it; mount it to keep them.
ENV HOME=/cache XDG_CACHE_HOME=/cache
RUN mkdir --mode=777 /cache
VOLUME /cache

WORKDIR /work
USER 1000:1000
ENTRYPOINT ["fcn-jax"]
CMD ["--help"]
