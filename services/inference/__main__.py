"""`python -m services.inference`: one inference process."""

from services.common.server import main
from services.inference.app import SERVICE, Settings, build

if __name__ == "__main__":
    main(SERVICE, Settings, build)
