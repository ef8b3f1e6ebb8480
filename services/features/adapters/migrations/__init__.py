"""How the tables came to be. A migration only adds (expand), so that the release before runs on its result."""

from pathlib import Path
from typing import Final

MIGRATIONS: Final = Path(__file__).parent
"""The folder, as `services.common.migration` takes it."""
VERSION_TABLE: Final = "features_alembic_version"
"""Where the database says how far it is: other services may live in the same one."""
