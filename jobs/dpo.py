"""The job `dpo`: `ray job submit --working-dir . -- python jobs/dpo.py [flags of ucotron-ray dpo]`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
