# The digest is what is taken; the tag tells people, and dependabot, which moves both, what that is.
FROM python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c AS base

FROM base AS build
WORKDIR /build
COPY requirements.lock.txt ./
RUN python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
    --requirement requirements.lock.txt

FROM base
# Nothing is written at run time, so the root file system may be read-only.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
COPY --from=build /venv /venv
COPY app.py ./
COPY migrations/ migrations/
COPY pages/ pages/
COPY queries/ queries/
# What template.yaml has RDS' certificate verified with.
COPY rds-roots.pem ./
# What reads SQL, values, prompts and uploads; the rest of seed/ is for laptops.
COPY seed/fetch.py seed/mock_model.py seed/model.py seed/records.py seed/statements.py seed/values.py seed/
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "8000"]
