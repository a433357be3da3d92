"""The entry points of the containers, beside their Dockerfiles."""
