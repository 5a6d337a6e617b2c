"""The closed sets that journal, metrics and status have in common; their words are labels of metrics as well."""

from typing import Final, Literal, get_args

View = Literal["update_time", "create_time"]
"""The time by which a pass reads: an incident that was never updated may have no update time."""
VIEWS: Final[tuple[View, ...]] = get_args(View)
Mode = Literal["keyset", "ordered", "scan"]
"""How a view is read: by filter and order; by order alone, newest first; or all of it, in whatever order it comes."""
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
SinkState = Literal["ok", "failing", "paused", "parked", "disabled"]
"""How the far side of a sink is; the last two last until a person ends them."""
SINK_STATES: Final[tuple[SinkState, ...]] = get_args(SinkState)
