"""The job `compare`: it takes the flags of `ucotron-ray compare`. How it gets to a cluster: README.md."""

from ucotron_ray.cli import job

if __name__ == "__main__":
    job(__file__)
