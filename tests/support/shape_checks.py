"""The checker that jaxtyping's import hook puts on every function of farfield while tests run."""

from __future__ import annotations

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

#: beartype as annotations mean it: an int is good where a float is asked for (PEP 484), and `Self`, which beartype
#: understands only on decorated classes, is not looked at.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object})))
