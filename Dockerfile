# Targets: worker, serving, and api (the last, so what a plain `docker build .` makes).
# The build stages start from the full image, which has the compilers that llama-cpp-python needs.

FROM python:3.11 AS build
WORKDIR /src
ENV PATH=/opt/bitmill/bin:$PATH
RUN python -m venv /opt/bitmill
# Only what decides the dependencies, so that a change in the code does not install them again.
COPY pyproject.toml README.md LICENSE ./
COPY app/__init__.py app/

FROM build AS api-build
RUN pip install --no-cache-dir ".[postgresql,redis]"
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM build AS worker-build
# An index of torch wheels for a CUDA version or for the CPU alone; empty takes the package index's own choice.
ARG TORCH_INDEX_URL=
# For every x86-64 with AVX2, not only for processors like the one that builds the image.
ENV CMAKE_ARGS=-DGGML_NATIVE=OFF
RUN pip install --no-cache-dir ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    ".[postgresql,redis,worker,gptq,demo]"
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM build AS serving-build
ARG TORCH_INDEX_URL=
RUN pip install --no-cache-dir ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    ".[postgresql,gptq,llama-cpp,transformers]"
COPY app app
COPY workers workers
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps --force-reinstall .

FROM python:3.11-slim AS runtime
# The same user in every image: they share the data volume.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin bitmill \
    && mkdir --parents /var/lib/bitmill \
    && chown bitmill:bitmill /var/lib/bitmill
ENV PATH=/opt/bitmill/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BITMILL_DATA_DIR=/var/lib/bitmill
WORKDIR /var/lib/bitmill
VOLUME /var/lib/bitmill

FROM runtime AS engine-runtime
# llama.cpp's libraries need OpenMP.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
# The hub's and torch's own caches, and what engines keep in a home: beside the data, because the root file system may be read-only.
ENV HOME=/var/lib/bitmill/cache/home \
    HF_HOME=/var/lib/bitmill/cache/huggingface \
    TORCH_HOME=/var/lib/bitmill/cache/torch \
    TRITON_CACHE_DIR=/var/lib/bitmill/cache/triton \
    GPTQMODEL_TORCH_EXTENSIONS_DIR=/var/lib/bitmill/cache/gptqmodel

FROM engine-runtime AS worker
COPY --from=worker-build /opt/bitmill /opt/bitmill
USER 10001
# Asks through the broker, so it is for people to look at: a lost broker must not end a running job.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s \
    CMD ["sh", "-c", "celery --app workers.celery_app inspect ping --timeout 10 --destination worker@$(hostname)"]
CMD ["bitmill", "worker"]

FROM engine-runtime AS serving
COPY --from=serving-build /opt/bitmill /opt/bitmill
USER 10001
EXPOSE 8001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8001/livez', timeout=4)"]
CMD ["bitmill", "serving", "--host", "0.0.0.0", "--port", "8001"]

FROM runtime AS api
COPY --from=api-build /opt/bitmill /opt/bitmill
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=4)"]
CMD ["bitmill", "api", "--host", "0.0.0.0", "--port", "8000"]
