"""What is read from a compiled program's text: by hand-made texts with known answers, and by loops that are compiled
here and counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tandem.parallel.counting import count, product_flops
from tandem.parallel.hlo import Array, parse

# A loop from 2 by 3 while below 17, so of 5 trips, around one whose text says 4; sizes such that no two products agree.
NESTED = """
HloModule nested, is_scheduled=true

%inner_body (p: (s32[], f32[6,10], f32[10,10])) -> (s32[], f32[6,10], f32[10,10]) {
  %p = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[6,10]{1,0} get-tuple-element(%p), index=1
  %w = f32[10,10]{1,0} get-tuple-element(%p), index=2
  %y = f32[6,10]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}) tuple(%i, %y, %w)
}

%inner_condition (p.1: (s32[], f32[6,10], f32[10,10])) -> pred[] {
  %p.1 = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}) parameter(0)
  ROOT %never.read = pred[] constant(false)
}

%next (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}

%outer_body (q: (s32[], f32[6,10], f32[10,10], s32[])) -> (s32[], f32[6,10], f32[10,10], s32[]) {
  %q = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %step = s32[] get-tuple-element(%q), index=3
  %j.next = s32[] fusion(%j, %step), kind=kLoop, calls=%next
  %x.1 = f32[6,10]{1,0} get-tuple-element(%q), index=1
  %w.1 = f32[10,10]{1,0} get-tuple-element(%q), index=2
  %zero = s32[] constant(0)
  %begin = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}) tuple(%zero, %x.1, %w.1)
  %inner = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}) while(%begin), condition=%inner_condition, body=%inner_body, \
backend_config={"known_trip_count":{"n":"4"}}
  %x.2 = f32[6,10]{1,0} get-tuple-element(%inner), index=1
  ROOT %u = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}, /*index=3*/s32[]) tuple(%j.next, %x.2, %w.1, %step)
}

%outer_condition (r: (s32[], f32[6,10], f32[10,10], s32[])) -> pred[] {
  %r = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}, s32[]) parameter(0)
  %k = s32[] get-tuple-element(%r), index=0
  %limit = s32[] LIMIT
  ROOT %below = pred[] compare(%k, %limit), direction=LT
}

ENTRY %main (x.3: f32[6,10], w.3: f32[10,10]) -> f32[6,10] {
  %x.3 = f32[6,10]{1,0} parameter(0)
  %w.3 = f32[10,10]{1,0} parameter(1)
  %two = s32[] constant(2)
  %two.1 = s32[] copy(%two)
  %three = s32[] constant(3)
  %begin.1 = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}, s32[]) tuple(%two.1, %x.3, %w.3, %three)
  %outer = (s32[], f32[6,10]{1,0}, f32[10,10]{1,0}, s32[]) while(%begin.1), condition=%outer_condition, body=%outer_body
  ROOT %out = f32[6,10]{1,0} get-tuple-element(%outer), index=1
}
"""


def entry(*lines: str, before: str = "") -> str:
    return (
        f"HloModule m\n{before}\nENTRY %main (p: f32[1]) -> f32[1] {{\n" + "\n".join(f"  {x}" for x in lines) + "\n}\n"
    )


def test_trips_of_nested_loops_multiply_what_is_inside():
    counts, loops = count(parse(NESTED.replace("LIMIT", "constant(17)")))
    assert [(loop.name, loop.trips) for loop in loops] == [("outer", 5), ("inner", 4)]
    product = 2 * 6 * 10 * 10
    assert counts.flops == 5 * 4 * product
    assert loops[0].trip.flops == 4 * product
    # A product reads and writes its three arrays; a trip of the outer loop also adds two numbers of four bytes, and
    # compares two; and the entry copies one.
    once = 4 * 4 * (60 + 100 + 60) + 12 + 4 + 4 + 1
    assert counts.bytes == 5 * once + 8


def test_a_loop_that_data_ends_has_no_trips_and_counts_once():
    text = NESTED.replace("LIMIT", "constant(17)").replace("s32[] copy(%two)", "s32[] custom-call(%x.3)")
    counts, loops = count(parse(text))
    assert [loop.trips for loop in loops] == [None, 4]
    assert counts.flops == 4 * 2 * 6 * 10 * 10 == loops[0].trip.flops


def test_compiled_loops_are_counted_as_by_hand_where_xla_counts_them_once():
    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        def outer(_: int, x: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

        return jax.lax.fori_loop(2, 9, outer, x) @ w[0]

    compiled = jax.jit(program).lower(jnp.ones((6, 10)), jnp.ones((4, 10, 10))).compile()
    counts, loops = count(parse(compiled.as_text()))
    product = 2 * 6 * 10 * 10
    assert counts.flops == 7 * 4 * product + product
    assert [loop.trips for loop in loops] == [7, 4]
    assert compiled.cost_analysis()["flops"] < 3 * product


def test_a_loop_over_data_is_found_in_a_compiled_program():
    def program(x: jax.Array, limit: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < limit, lambda x: x @ x, x)

    compiled = jax.jit(program).lower(jnp.ones((8, 8)), jnp.float32(3)).compile()
    counts, (loop, *_) = count(parse(compiled.as_text()))
    assert loop.trips is None
    assert counts.flops == 2 * 8 * 8 * 8


@pytest.mark.parametrize("shape", [((3, 5, 7), (3, 7, 2)), ((4, 1, 16), (4, 16, 8))])
def test_products_with_batch_axes(shape):
    left, right = (jnp.ones(one) for one in shape)
    compiled = jax.jit(jnp.matmul).lower(left, right).compile()
    assert count(parse(compiled.as_text()))[0].flops == 2 * left.size * right.shape[-1]


def test_a_tpus_convolution_counts_the_taps_that_meet_an_element():
    # 8 products of [16, 32] with [32, 64], as a TPU writes them: windows of 8 over places that are 8 apart.
    text = entry(
        "%a = bf16[8,16,32]{2,1,0} parameter(0)",
        "%b = bf16[8,32,64]{2,1,0} parameter(1)",
        "%c = bf16[8,16,64]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf",
        "%d = bf16[16,32]{1,0} parameter(2)",
        "ROOT %e = bf16[16,16]{1,0} convolution(%d, %d), dim_labels=bf_oi->bf",
    )
    module = parse(text)
    assert product_flops(module, module.entry, module.entry.operations["c"]) == 2 * 8 * 16 * 32 * 64
    assert product_flops(module, module.entry, module.entry.operations["e"]) == 2 * 16 * 32 * 16


ADD = """
%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %s = f32[] add(%l, %r)
}
"""


def test_a_sum_of_products_is_a_product_and_one_of_squares_is_none():
    text = entry(
        "%a = f32[64,32]{1,0} parameter(0)",
        "%b = f32[64,32]{1,0} parameter(1)",
        "%zero = f32[] constant(0)",
        "%c = f32[64,32]{1,0} multiply(%a, %b)",
        "%d = f32[32]{0} reduce(%c, %zero), dimensions={0}, to_apply=%add",
        "%e = f32[64,32]{1,0} multiply(%a, %a)",
        "ROOT %f = f32[32]{0} reduce(%e, %zero), dimensions={0}, to_apply=%add",
        before=ADD,
    )
    assert count(parse(text))[0].flops == 2 * 64 * 32


def test_memory_counts_whole_tiles_and_the_chips_own_memory_not_at_all():
    assert Array("bf16", (3, 130), (1, 0), (8, 128)).bytes == 8 * 256 * 2
    assert Array("bf16", (3, 130), (0, 1), (8, 128)).bytes == 128 * 136 * 2
    assert Array("bf16", (3, 130), (1, 0), (8, 128)).payload == 3 * 130 * 2
    assert Array("f32", (), (), (128,)).bytes == 4
    text = entry(
        "%a = f32[8,128]{1,0:T(8,128)} parameter(0)",
        "%b = f32[8,128]{1,0:T(8,128)S(1)} parameter(1)",
        "%c = f32[8,128]{1,0:T(8,128)S(1)} add(%a, %b)",  # reads one, 4096 bytes
        "%d = f32[8,128]{1,0:T(8,128)} tanh(%c)",  # writes one
        "%e = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%d)",  # reads one
        "ROOT %f = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%e)",
    )
    assert count(parse(text))[0].bytes == 3 * 4096
    text = entry(
        "%a = f32[64,128]{1,0:T(8,128)} parameter(0)",
        "%b = (f32[64,128]{1,0:T(8,128)}, f32[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:16]}",
        "ROOT %c = f32[16,128]{1,0:T(8,128)S(1)} slice-done(%b)",
    )
    assert count(parse(text))[0].bytes == 16 * 128 * 4


FUSED_UPDATE = """
%update (cache: f32[4,1000,8], new: f32[4,2,8], at: s32[]) -> f32[4,1000,8] {
  %cache = f32[4,1000,8]{2,1,0} parameter(0)
  %new = f32[4,2,8]{2,1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %put = f32[4,1000,8]{2,1,0} dynamic-update-slice(%cache, %new, %zero.1, %at, %zero.1)
}
%part (cache.1: f32[4,1000,8], at.1: s32[]) -> f32[4,3,8] {
  %cache.1 = f32[4,1000,8]{2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %zero.2 = s32[] constant(0)
  %cut = f32[4,3,8]{2,1,0} dynamic-slice(%cache.1, %zero.2, %at.1, %zero.2), dynamic_slice_sizes={4,3,8}
  ROOT %turned = f32[4,3,8]{2,1,0} tanh(%cut)
}
"""


def test_updates_in_place_and_slices_count_what_they_touch():
    text = entry(
        "%a = f32[4,1000,8]{2,1,0} parameter(0)",
        "%b = f32[4,2,8]{2,1,0} parameter(1)",
        "%i = s32[] parameter(2)",
        "%c = f32[4,1000,8]{2,1,0} fusion(%a, %b, %i), kind=kLoop, calls=%update",
        "ROOT %d = f32[4,3,8]{2,1,0} fusion(%c, %i), kind=kLoop, calls=%part",
        before=FUSED_UPDATE,
    )
    update, part, index = 4 * 2 * 8 * 4, 4 * 3 * 8 * 4, 4
    assert count(parse(text))[0].bytes == (update + index + update) + (part + index + part)


def test_collectives_are_counted_with_what_a_ring_sends():
    text = entry(
        "%a = bf16[16,128]{1,0} parameter(0)",
        "%b = bf16[16,128]{1,0} all-reduce(%a), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add",
        "%c = bf16[64,128]{1,0} all-gather(%b), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}",
        "%g = bf16[16,128]{1,0} all-reduce(%b), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add",
        "%h = bf16[16,128]{1,0} all-reduce(%g), replica_groups={}, to_apply=%add",
        "%d = (bf16[16,128]{1,0}, bf16[16,128]{1,0}, u32[], u32[]) collective-permute-start(%b), channel_id=3",
        "%e = bf16[16,128]{1,0} collective-permute-done(%d)",
        "ROOT %f = bf16[4,128]{1,0} reduce-scatter(%e), channel_id=4, replica_groups=[2,4]<=[8], dimensions={0}",
    )
    size = 16 * 128 * 2
    counts, _ = count(parse(text.replace("HloModule m", "HloModule m, num_partitions=8")))
    found = {kind: (one.count, one.payload, one.sent) for kind, one in counts.collectives.items()}
    assert found == {
        "all-reduce": (3, 3 * size, 2 * size * (3 / 4 + 3 / 4 + 7 / 8)),
        "all-gather": (1, 4 * size, 4 * size * 3 / 4),
        "collective-permute": (1, size, size),
        "reduce-scatter": (1, size, size * 3 / 4),
    }
    assert counts.sent == sum(one[2] for one in found.values())
