"""Bags: the ``.yaml`` beside the checkpoints whose weighted mean a released model is."""

from __future__ import annotations

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitter.errors import CheckpointError
from splitter.plan.schema import readable

from . import yaml_files

MOST_BYTES = 2**16

_Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class BagListing(BaseModel):
    """Members by signature, the weight of each per stem, and the longest segment."""

    model_config = ConfigDict(extra="forbid")

    models: list[Annotated[str, Field(pattern=r"^[0-9a-z]{1,32}$")]] = Field(min_length=1, max_length=16)
    weights: Annotated[list[Annotated[list[_Weight], Field(max_length=32)]], Field(max_length=16)] | None = None
    segment: Annotated[float, Field(ge=0.1, le=60, allow_inf_nan=False)] | None = None


def parsed(data: bytes, name: str) -> BagListing:
    """The bag that a file describes.

    Raises:
        CheckpointError: It is no YAML, says something else, or is nested deeper, longer or otherwise than a bag.
    """
    try:
        text = data.decode()
        yaml_files.check_bounds(text, name)
        # The base loader makes text of every value, so that no number or date is computed before its schema is asked.
        return BagListing.model_validate(yaml.load(text, Loader=yaml.BaseLoader))  # noqa: S506 (makes nothing but text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{name} is no YAML", received=str(error).replace("\n", " ")[:300]) from error
    except ValidationError as error:
        raise CheckpointError(f"{name} does not list the members of a model", received=readable(error)[:400]) from error
