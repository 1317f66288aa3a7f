"""JSON documents that are sound but for a few places."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([-(2**63), 2**31, 2**53 + 1, 2**63, 2**64, 10**40]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["../x", "/etc/passwd", "a/b", "\0", "\x1b[31m", "re:(a+)+$", "re:(", "model.safetensors", "0" * 64]
    ),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@st.composite
def edited(draw, document):
    """A document with one to three places set, removed or renamed."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = _edited_once(draw, found)
    return found


def _edited_once(draw, found):
    holder, key = None, None
    place = found
    while isinstance(place, dict | list) and place and (holder is None or draw(st.booleans())):
        holder, key = place, draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place = holder[key]
    if holder is None:
        return draw(VALUES)
    how = draw(st.sampled_from(["set", "set", "remove", "rename"]))
    if how == "remove":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.text(max_size=6))] = holder.pop(key)
    else:
        holder[key] = draw(VALUES)
    return found
