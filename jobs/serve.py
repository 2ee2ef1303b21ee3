"""The job `serve`: `ray job submit --working-dir . -- python jobs/serve.py [flags of ucotron-ray serve]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
