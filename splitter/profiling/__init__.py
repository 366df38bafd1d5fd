"""Says where the time and the memory of a bundle go on a machine."""

from .measurement import profile
from .records import EngineProfile, Profile, apart, check_same_model, json_schema, merged, read
from .timeline import Timeline

__all__ = [
    "EngineProfile",
    "Profile",
    "Timeline",
    "apart",
    "check_same_model",
    "json_schema",
    "merged",
    "profile",
    "read",
]
