# syntax=docker/dockerfile:1
# One image for every command; the targets differ in torch: `cpu`, the default, and `cuda`.
FROM python:3.11.15-slim-trixie AS python
ENV PATH=/opt/venv/bin:$PATH

FROM python AS install
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt ./
# Stand-ins for what the package is made of: a change of the code installs nothing anew.
RUN mkdir db extractor flows patchstore \
    && touch db/__init__.py extractor/__init__.py flows/__init__.py patchstore/__init__.py README.md LICENSE

FROM install AS install-cpu
# PyPI's torch for Linux brings CUDA, five gigabytes of it; PyTorch's own index has one without.
ARG TORCH_INDEX
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --constraint constraints.txt torch torchvision \
    && pip install --constraint constraints.txt --editable '.[s3]'

FROM install AS install-cuda
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt --editable '.[s3]'

FROM python AS patchstore
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Its home holds the weights that were downloaded.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/patchstore patchstore
WORKDIR /var/lib/patchstore
COPY db /app/db
COPY extractor /app/extractor
COPY flows /app/flows
COPY migrations /app/migrations
COPY patchstore /app/patchstore
USER 10001
EXPOSE 8080
HEALTHCHECK --start-period=2m CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/readyz', timeout=5)"]
CMD ["patchstore", "serve", "--host", "0.0.0.0"]

FROM patchstore AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --link --from=install-cuda /opt/venv /opt/venv

FROM patchstore AS cpu
COPY --link --from=install-cpu /opt/venv /opt/venv
