# What `.ci/images` calls python:3.11-slim: the parts of the real one that our Dockerfiles rely on, and this machine's
# way to package indexes.
FROM debian:bookworm
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
RUN python3 -m venv /opt/python
ENV PATH=/opt/python/bin:$PATH
