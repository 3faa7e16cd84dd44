# LiteSeg on an NVIDIA GPU. nvcc is needed for the build alone: torch brings the run-time libraries, the host the driver.
#   docker build -f docs/docker/cuda.Dockerfile -t liteseg:cuda .
#   docker run --rm --gpus all -v "$PWD:/data" liteseg:cuda predict /data/street.jpg --weights camvid --out /data/out
# CUDA: a tag of the base image, with nvcc; it need not be the CUDA that torch was built with.
ARG CUDA=13.0.1-devel-ubuntu24.04
FROM nvidia/cuda:${CUDA} AS build
ARG TORCH=torch==2.13.0
RUN apt-get update && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir "$TORCH" setuptools wheel
WORKDIR /src
COPY . .
RUN LITESEG_BUILD=cuda /venv/bin/pip wheel --no-cache-dir --no-build-isolation --no-deps -w /wheels .

FROM python:3.12-slim-trixie
ARG TORCH=torch==2.13.0
RUN pip install --no-cache-dir "$TORCH"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/liteseg-*.whl)[train,video,export]" && rm -r /wheels
WORKDIR /data
ENTRYPOINT ["liteseg"]
CMD ["--help"]
