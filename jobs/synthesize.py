"""The job `synthesize`: it takes the flags of `ucotron-ray synthesize`. How it gets to a cluster: README.md."""

from ucotron_ray.cli import job

if __name__ == "__main__":
    job(__file__)
