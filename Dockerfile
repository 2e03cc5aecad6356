# docker build -t albef .
# docker run --gpus all --ipc=host -v "$PWD":/work albef pretrain --config scenes
FROM python:3.11-slim
WORKDIR /source
COPY constraints.txt pyproject.toml setup.cfg setup.py README.md LICENSE ./
COPY albef_hf albef_hf
RUN pip install --no-cache-dir --constraint constraints.txt ".[train,lora,search,demo,captioning,export,sentence-transformers]"
WORKDIR /work
ENTRYPOINT ["albef"]
