"""`python -m ucotron_ray`."""

import sys

from ucotron_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
