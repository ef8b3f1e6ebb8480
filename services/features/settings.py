"""What the features service reads from the environment."""

from services.common.settings import CommonSettings


class Settings(CommonSettings):
    """Settings of the features service: what all services have."""
