"""What the monitor reads from the environment."""

from typing import Annotated

from pydantic import Field

from services.common.settings import CommonSettings


class Settings(CommonSettings):
    """Settings of the monitor."""

    prediction_count_limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Combinations of model, version and variant that are counted apart; further ones share one count."""
