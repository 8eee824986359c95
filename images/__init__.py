"""What the steps run in: Dockerfiles and locks, and in digests.json the images that were pushed."""
