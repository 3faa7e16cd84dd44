# LiteSeg on the CPU.
#   docker build -f docs/docker/cpu.Dockerfile -t liteseg:cpu .
#   docker run --rm -v "$PWD:/data" liteseg:cpu predict /data/street.jpg --weights camvid --out /data/out
# TORCH_INDEX: where pip finds torch without CUDA, as PyTorch's own install page gives it; without it the image is larger
# by the CUDA libraries that nothing in it uses.
FROM python:3.12-slim-trixie AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
RUN pip install --no-cache-dir setuptools wheel
WORKDIR /src
COPY . .
RUN LITESEG_BUILD=cpu pip wheel --no-cache-dir --no-build-isolation --no-deps -w /wheels .

FROM python:3.12-slim-trixie
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$TORCH"
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir "$(ls /wheels/liteseg-*.whl)[train,video,export]" && rm -r /wheels
WORKDIR /data
ENTRYPOINT ["liteseg"]
CMD ["--help"]
