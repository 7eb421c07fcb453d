# docker build -t llmdreamer .                                 for a CPU
# docker build -t llmdreamer --build-arg DEVICE=cuda .         with CUDA libraries, for NVIDIA's container runtime
# docker run --rm -v "$PWD:/runs" llmdreamer train             runs and records are written to the current folder
FROM python:3.11-slim

# PyPI's torch brings CUDA libraries of several GB. The extra index has the same version without them, which pip prefers.
ARG DEVICE=cpu
WORKDIR /source
COPY constraints.txt ./
RUN case "$DEVICE" in \
      cpu) pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch ;; \
      cuda) pip install --no-cache-dir --constraint constraints.txt torch ;; \
      *) echo "DEVICE=$DEVICE: must be cpu or cuda" >&2; exit 1 ;; \
    esac

COPY pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY sweeps ./sweeps
COPY hydra_plugins ./hydra_plugins
COPY llmdreamer ./llmdreamer
RUN pip install --no-cache-dir --constraint constraints.txt .

WORKDIR /runs
ENTRYPOINT ["llmdreamer"]
CMD ["train"]
