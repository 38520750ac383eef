"""The rules that every section of a study file follows."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the study file: immutable, no unknown keys, no conversion of types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
