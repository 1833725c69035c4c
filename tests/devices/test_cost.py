"""Bytes of a compiled step by its parts: of a program that is written by hand, and of those that XLA makes."""

import importlib.util
import pathlib

import pytest

from vision_jax import dry_run, steps
from vision_jax.config import command_line
from vision_jax.devices import compilation, cost

REPOSITORY = pathlib.Path(__file__).parent.parent.parent
SCOPES = (steps.AUGMENTATION, steps.OPTIMIZER)

PROGRAM = """HloModule jit_train_step, is_scheduled=true

%fused_slice (param_0: f32[4,8,128], param_1: s32[]) -> bf16[8,128] {
  %param_0 = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %bitcast.1 = f32[4,8,128]{2,1,0:T(8,128)} bitcast(%param_0)
  %dynamic-slice.1 = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%bitcast.1, %param_1), dynamic_slice_sizes={1,8,128}
  ROOT %convert.1 = bf16[8,128]{1,0:T(8,128)(2,1)} convert(%dynamic-slice.1)
}

%fused_update (param_0.1: f32[4,8,128], param_1.1: f32[1,8,128], param_2: s32[]) -> (f32[4,8,128], f32[8]) {
  %param_0.1 = f32[4,8,128]{2,1,0:T(8,128)} parameter(0)
  %param_1.1 = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %dynamic-update-slice.1 = f32[4,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_0.1, %param_1.1, %param_2)
  %reduce.1 = f32[8]{0:T(256)} reduce(%param_1.1, %param_2), dimensions={0,2}, to_apply=%add
  ROOT %tuple.1 = (f32[4,8,128]{2,1,0:T(8,128)}, f32[8]{0:T(256)}) tuple(%dynamic-update-slice.1, %reduce.1)
}

%condition (state: (s32[], f32[4,8,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) parameter(0)
  ROOT %true = pred[]{:T(512)} constant(true)
}

%body (state.2: (s32[], f32[4,8,128])) -> (s32[], f32[4,8,128]) {
  %state.2 = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) parameter(0)
  %index = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %stack = f32[4,8,128]{2,1,0:T(8,128)} get-tuple-element(%state.2), index=1
  %part = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%stack, %index), kind=kLoop, calls=%fused_slice, \
metadata={op_name="jit(train_step)/while/body/jvp(Net)/mul" stack_frame_id=1}
  %again = f32[1,8,128]{2,1,0:T(8,128)} convert(%part), \
metadata={op_name="jit(train_step)/transpose(jvp(Net))/rematted_computation/mul"}
  %update = (f32[4,8,128]{2,1,0:T(8,128)}, f32[8]{0:T(256)}) fusion(%stack, %again, %index), kind=kLoop, \
calls=%fused_update, metadata={op_name="jit(train_step)/while/body/transpose(jvp(Net))/mul"}
  %stack.1 = f32[4,8,128]{2,1,0:T(8,128)} get-tuple-element(%update), index=0
  ROOT %next = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) tuple(%index, %stack.1)
}

ENTRY %main (state.3: f32[4,8,128], image: u8[10,130]) -> (f32[4,8,128], f32[130,10]) {
  %state.3 = f32[4,8,128]{2,1,0:T(8,128)} parameter(0), metadata={op_name="state"}
  %image = u8[10,130]{1,0:T(8,128)(4,1)} parameter(1), metadata={op_name="batch[\\'image\\']"}
  %zero = s32[]{:T(128)} constant(0)
  %flipped = f32[10,130]{1,0:T(8,128)} convert(%image), \
metadata={op_name="jit(train_step)/augmentation/vmap()/convert_element_type"}
  %copy-start = (f32[10,130]{1,0:T(8,128)S(1)}, f32[10,130]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%flipped)
  %copy-done = f32[10,130]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[4,8,128]{2,1,0:T(8,128)}), f32[1,8,128]{2,1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
slice-start(%state.3), slice={[0:1], [0:8], [0:128]}
  %slice-done = f32[1,8,128]{2,1,0:T(8,128)S(1)} slice-done(%slice-start)
  %joined = f32[1,8,128]{2,1,0:T(8,128)S(1)} custom-call(%slice-done), custom_call_target="ConcatBitcast"
  %moved = f32[10,130]{0,1:T(8,128)} copy(%copy-done)
  %start = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) tuple(%zero, %state.3)
  %while = (s32[]{:T(128)}, f32[4,8,128]{2,1,0:T(8,128)}) while(%start), condition=%condition, body=%body, \
metadata={op_name="jit(train_step)/while"}
  %stack.2 = f32[4,8,128]{2,1,0:T(8,128)} get-tuple-element(%while), index=1
  %new = f32[4,8,128]{2,1,0:T(8,128)} add(%state.3, %stack.2), metadata={op_name="jit(train_step)/optimizer/add"}
  %rest = f32[8]{0} negate(%zero), metadata={op_name="jit(train_step)/neg"}
  ROOT %result = (f32[4,8,128]{2,1,0:T(8,128)}, f32[130,10]{1,0:T(8,128)}) tuple(%new, %moved)
}
"""
STACK, SLICE, SCALAR = 4 * 8 * 128 * 4, 8 * 128 * 4, 128 * 4


def test_bytes_are_told_apart_by_the_names_of_operations():
    """With whole tiles: (10, 130) takes (16, 256), and transposed (136, 128)."""
    assert cost.bytes_by_part(PROGRAM, SCOPES) == {
        "augmentation": 16 * 256 * (1 + 4),
        "forward": SLICE + SCALAR + SLICE // 2,  # of the stack, only the slice is read
        # Reads half a slice and writes a whole one; reads it and an index, and writes it into the stack, and a sum.
        "backward": SLICE // 2 + SLICE + SLICE + SCALAR + SLICE + 256 * 4,
        "optimizer": 3 * STACK,
        # One to on-chip memory, one of a slice, and one that changes the layout.
        "copies": 2 * 16 * 256 * 4 + 2 * SLICE + (16 * 256 + 136 * 128) * 4,
        "other": SCALAR + 8 * 4,
    }


def test_a_scope_is_a_whole_name():
    named = PROGRAM.replace("jvp(Net)", "jvp(optimizer_of_nets)")
    assert cost.bytes_by_part(named, SCOPES) == cost.bytes_by_part(PROGRAM, SCOPES)
    assert cost.bytes_by_part(PROGRAM, ("while",))["while"] > 0


def test_kernels_of_libraries_count_without_their_scratch_space():
    text = """ENTRY %main (x: bf16[4,8], w: bf16[8,2]) -> bf16[4,2] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w = bf16[8,2]{1,0} parameter(1)
  %product = (bf16[4,2]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"
  %annotation = bf16[4,2]{1,0} custom-call(%x), custom_call_target="Sharding"
  ROOT %result = bf16[4,2]{1,0} get-tuple-element(%product), index=0
}
"""
    assert sum(cost.bytes_by_part(text, ()).values()) == 2 * (4 * 8 + 8 * 2 + 4 * 2)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, XLA's compiler for TPUs, is not installed"
)
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_bytes_of_a_compiled_step_are_those_of_the_compiler(accumulate: int):
    """But for asynchronous copies, which it counts twice."""
    fields = {"data.source": "synthetic", "data.image_size": 16, "data.eval_resize": 16, "data.channels": 3}
    fields |= {"data.mean": "(0.5,0.5,0.5)", "data.std": "(0.5,0.5,0.5)", "dtype": "bfloat16"}
    fields |= {"augment.color_jitter": "(0.4,0.4,0.4)", "optimizer.accumulate": accumulate}
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    traced = dry_run.trace(command_line.load(str(REPOSITORY / "tests" / "small_vit.py"), overrides), "v5e:1x1")
    compiled = compilation.compile_step(traced.step)
    text = compiled.as_text()
    found = cost.bytes_by_part(text, SCOPES)
    assert min(found[part] for part in ("augmentation", "forward", "backward", "optimizer", "copies")) > 0
    program = cost._Program(text)
    asynchronous = sum(
        program.moved(scope, instruction)
        for scope, instruction in program.executed()
        if instruction.opcode in ("copy-start", "slice-start")
    )
    total = compiled.cost_analysis()["bytes accessed"]
    assert 0.7 < (sum(found.values()) + asynchronous) / total < 1.1
    assert found["other"] < 0.2 * sum(found.values())
