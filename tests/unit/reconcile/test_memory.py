"""What one process keeps for the next: as text and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import NodeView, Role, View
from efm_lb.reconcile.memory import Memory, Out, restored, text_of
from unit.reconcile.test_differences import NODES

NAMES = ("edge", "pool1")
NODE = st.sampled_from(NODES)
SECONDS = st.integers(0, 3000).map(float)


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    memory = Memory()
    attached = st.sampled_from([True, False, None])
    seen = draw(st.lists(st.builds(NodeView, NODE, attached, st.booleans(), st.just(""), st.booleans(), st.just(()))))
    memory.view = View(tuple(seen)) if seen else None
    memory.timeline = draw(st.none() | st.integers(1, 1000))
    memory.is_own_work = draw(st.booleans())
    memory.is_unfinished = memory.is_own_work and draw(st.booleans())
    memory.put_in = draw(st.lists(NODE).map(tuple)) if memory.is_own_work else ()
    memory.out = draw(st.dictionaries(NODE, st.builds(Out, st.sampled_from(Role), SECONDS, st.just(0.0))))
    memory.moved_to = draw(st.none() | NODE)
    return memory


@given(st.dictionaries(st.sampled_from(NAMES), memories()), st.dictionaries(NODE, SECONDS))
def test_it_comes_back_as_it_was(balancers: dict[str, Memory], down: dict[object, float]) -> None:
    text = text_of(balancers, down, 1000.0)  # type: ignore[arg-type]
    back, down_back = restored(text, NAMES, NODES, 3000.0, 1000.0)
    assert down_back == down
    told = {name: vars(memory) for name, memory in balancers.items() if vars(memory) != vars(Memory())}
    for memory in told.values():
        memory["gone"] = frozenset(down)
    assert {name: vars(memory) for name, memory in back.items()} == told


@given(st.text(alphabet="\t\n0123456789.-edown sawintupl1b2", max_size=200))
def test_any_text_is_taken(text: str) -> None:
    restored(text, NAMES, NODES, 0.0, 0.0)


@pytest.mark.parametrize(("names", "nodes"), [((), NODES), (NAMES, ())])
def test_what_is_gone_from_the_settings_is_forgotten(names: tuple[str, ...], nodes: tuple[()]) -> None:
    text = "saw\tpool1\tdb3\tin\t-\nout\tpool1\tdb3\tstandby\t60\t60"
    back, _ = restored(text, names, nodes, 0.0, 0.0)
    assert [vars(memory) for memory in back.values()] == [vars(Memory()) for _ in names if _ == "pool1"]
