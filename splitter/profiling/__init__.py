"""Says where the time and the memory of a bundle go on a machine."""

from .measurement import profile
from .records import Profile, json_schema, merged, read
from .timeline import Timeline

__all__ = ["Profile", "Timeline", "json_schema", "merged", "profile", "read"]
