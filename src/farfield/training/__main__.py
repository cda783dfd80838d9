"""``python -m farfield.training CONFIG.yaml [--resume] [key=value ...]``: what Lightning's launcher starts again."""

import sys

from farfield.training.run import train_from_yaml

if __name__ == "__main__":
    arguments = [item for item in sys.argv[1:] if item != "--resume"]
    if not arguments:
        sys.exit(__doc__)
    result = train_from_yaml(arguments[0], resume="--resume" in sys.argv, overrides=arguments[1:])
    sys.exit(130 if result.interrupted else 0)
