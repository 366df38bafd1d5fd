from ..mil.conftest import flexible_package

__all__ = ["flexible_package"]
