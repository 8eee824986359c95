"""Bytes: a small store over S3 or plain files, and publish-once on top of it."""
