"""Deliberate bugs: for each, some test of the suite must fail. A suite that lets one live has a hole.

Each mutant is a text replacement in a copy of the package; the tests named with it run against the copy.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STARTS, EXPERTS = "tests/equations/test_initializers.py", "tests/laws/test_experts.py"
LAWS, ROUTED, TEXT, TRAINING = (
    "tests/laws",
    "tests/equations/test_routed.py",
    "tests/equations/test_text.py",
    "tests/equations/test_training.py",
)

MUTANTS = {
    "the scaling is dropped": ("core/routed.py", "alpha=scalings[s.adapter])", "alpha=1.0)", ROUTED),
    "the scaling is dropped in a merge": ("core/lowrank.py", "alpha=scaling)", "alpha=1.0)", ROUTED),
    "A is transposed": ("core/routed.py", "wide_seen[s.start : s.stop] @ A[s.adapter].T", "wide_seen[s.start : s.stop] @ A[s.adapter].reshape(A[s.adapter].shape[::-1])", ROUTED),
    "B is transposed in a merge": ("core/lowrank.py", "B.to(wide)", "B.reshape(B.shape[::-1]).T.contiguous().reshape(B.shape).to(wide)", ROUTED),
    "the gradient of x misses the base": ("core/routed.py", "linear_backward(g, weight) if needs_x", "torch.zeros(len(g), weight.shape[1], dtype=dtype) if needs_x", ROUTED),
    "a tile of the weight is passed over": ("core/product.py", "grad.addmm_(part, tile)", "pass", ROUTED),
    "two adapters are swapped": ("core/routed.py", "segments.append(Segment(start, stop, adapter))", "segments.append(Segment(start, stop, 1 - adapter if adapter < 2 else adapter))", ROUTED),
    "the gradient of A misses the scaling": ("core/routed.py", "(g[rows] @ B[k]).mul_(scaling)", "(g[rows] @ B[k])", ROUTED),
    "the gradient of B misses the scaling": ("core/routed.py", "transposed.mul_(scaling).T", "transposed.T", ROUTED),
    "the gradient of x misses the adapter": ("core/routed.py", "into[rows].addmm_(grad_hidden, A[k])", "pass", ROUTED),
    "a merged weight is rounded twice": ("core/lowrank.py", "return torch.addmm(weight.to(wide), B.to(wide), A.to(wide), alpha=scaling).to(weight.dtype)", "return weight + (scaling * (B.to(wide) @ A.to(wide))).to(weight.dtype)", ROUTED),
    "the bias is forgotten": ("export/merge.py", "return new.cpu()", "return torch.zeros_like(new)", "tests/cli/test_commands.py -k merge_writes"),
    "rslora scales as lora": ("methods/_low_rank.py", "self.r**0.5 if self.use_rslora else self.r", "self.r", "tests/interop/test_peft.py -k rslora"),
    "a start stays in the change": ("methods/lora.py", 'torch.cat([params["start_A"] + A, A], -2)', 'torch.cat([params["start_A"] + A, A + params["start_A"]], -2)', STARTS),
    "a finished alpha is not doubled": ("methods/lora.py", "lora_alpha=more * self.lora_alpha", "lora_alpha=self.lora_alpha", STARTS),
    "LoRA-GA takes B from A's directions": ("initializers/lora_ga.py", "U[:, -r:]", "U[:, :r]", STARTS),
    "OLoRA takes the last columns": ("initializers/olora.py", "found[:, :r]", "found[:, -r:]", STARTS),
    "PiSSA forgets the scaling": ("initializers/pissa.py", "found / scaling", "found", STARTS),
    "inputs before the last row are forgotten": ("training/measure.py", "torch.cat([self.found[base], x.float()]) if base in self.found else x.float()", "x.float()", STARTS),
    "LoftQ starts from the weight": ("base/residual.py", " - linear.weight(torch.float32).cpu()", "", f"{STARTS} -k nearer"),
    "an expert takes the first one's adapter": ("model/experts.py", "{name: each[e] for", "{name: each[0] for", EXPERTS),
    "a token takes its neighbour's adapter in an expert": ("model/experts.py", "torch.searchsorted(tokens, bounds)", "torch.searchsorted(tokens, bounds + 1)", EXPERTS),
    "experts are weighted alike": ("model/experts.py", "y * top_k_weights[..., None]", "y", EXPERTS),
    "the gradient of an expert's tokens is another token's": ("model/experts.py", "index_select(0, ctx.inverse)", "index_select(0, ctx.inverse.flip(0))", EXPERTS),
    "ranks and experts are exchanged in a file": ("formats/peft_forms.py", "tensor.permute(1, 2, 0).flatten(1)", "tensor.permute(1, 0, 2).flatten(1)", "tests/interop/test_methods.py -k experts"),
    "up is merged as gate": ("model/experts.py", "Part(e, number * rows)", "Part(e, 0)", EXPERTS),
    "a tied head keeps its rows": ("model/fitting.py", "(path, *layout.tied.get(path, ()))", "(path,)", "tests/interop/test_methods.py -k tokens"),
    "a row of an embedding is passed over": ("model/linear.py", "y[is_one.any(1)] +=", "y[is_one.any(1)] -=", "tests/interop/test_methods.py -k tokens"),
    "a layer that is never called is adapted": ("model/trial.py", "found = {path: READ if path in read else UNCALLED for path in idle}", "found = dict[str, str]()", "tests/laws/test_layers_that_run.py"),
    "a layer that nothing depends on is adapted": ("model/trial.py", "if zeros.get(path) and not any(id(zero) in kept for zero in zeros[path])", "if False", "tests/laws/test_layers_that_run.py"),
    "an expert that no token went to is left out": ("model/trial.py", "and not _is_alternative(modules, path, was_called)", "", "tests/laws/test_layers_that_run.py"),
    "a change of a weight that is read is taken": ("model/fitting.py", "if why == trial.READ and _changes(file, path, layout)", "if False", "tests/laws/test_layers_that_run.py"),
    "the rows of a batch are taken for each other's": ("model/trial.py", "return all(2 * far[i][i] <= far[i][1 - i] for i in range(2))", "return True", "tests/laws/test_layers_that_run.py -k whose"),
    "a prefix that is ignored is taken": ("model/prompt_trial.py", "if reason is not None:", "if False:", "tests/laws/test_prompts_families.py -k refused"),
    "a prefix that one layer misses is taken": ("model/prompt_trial.py", "if error <= allowed and (error <= EFFECT * effect or error == 0):", "if error < effect:", "tests/laws/test_prompts_families.py -k planted"),
    "padding is carried along": ("base/answers.py", "return not (error <= allowed or error <= EFFECT * effect)", "return False", "tests/attacks/test_model_limits.py -k unequal"),
    "one row's NaN ends the batch": ("base/answers.py", "if len(broken) < len(names):", "if False:", "tests/attacks/test_model_limits.py -k costs_no_other"),
    "positions that are not for tokens are counted": ("base/base.py", "limit - self.layout.first_position(limit)", "limit", "tests/attacks/test_model_limits.py -k positions"),
    "a change that rounding erases is merged": ("export/survival.py", "if part is None or part >= WHOLE:", "if True:", "tests/equations/test_survival.py"),
    "AdapterHub's places are exchanged": ("formats/adapterhub.py", 'return Place("attention_adapters", attention, "attention"), Place("output_adapters", mlp, "mlp")', 'return Place("output_adapters", attention, "attention"), Place("attention_adapters", mlp, "mlp")', "tests/interop/test_adapterhub.py -k theirs_say"),
    "AdapterHub's order of norm and sum is passed over": ("formats/adapterhub.py", '"original_ln_before": (False,)', '"original_ln_before": (False, True)', "tests/interop/test_adapterhub.py -k refused_by_name"),
    "AdapterHub's scaling is dropped": ("formats/adapterhub.py", 'scaling=inner.get("scaling", 1.0)', "scaling=1.0", "tests/interop/test_adapterhub.py -k theirs_say"),
    "AdapterHub's matrices are written in another order": ("formats/adapterhub.py", "tensors[ours].detach().cpu()", "tensors[ours].detach().cpu().T.reshape(tensors[ours].shape)", "tests/interop/test_adapterhub.py -k is_written_is"),
    "AdapterHub's matrices are read in another order": ("formats/adapterhub.py", "params.setdefault(ours, {})[name] = tensor", "params.setdefault(ours, {})[name] = tensor.T.contiguous().view(tensor.shape)", "tests/interop/test_adapterhub.py -k theirs_say"),
    "a row takes its neighbour's adapter": ("core/routed.py", "row * num_tokens, (row + 1) * num_tokens", "row * num_tokens + 1, (row + 1) * num_tokens + 1", ROUTED),
    "B does not start at zero": ("methods/_low_rank.py", "torch.zeros(base.out_features, self.r)", "torch.ones(base.out_features, self.r)", f"{LAWS} -k fresh"),
    "the seed is ignored": ("model/attach.py", "manual_seed(seed)", "manual_seed(0)", f"{LAWS} -k seed"),
    "the base is changed by a merge of rows": ("methods/_contract.py", "factors.B[start : start + len(weight)]", "factors.B[: len(weight)]", f"{LAWS} -k piece"),
    "an adapted layer stays after detaching": ("model/attach.py", "                self._set_(path, self.layout.modules[path])", "                pass", f"{LAWS} -k every_byte"),
    "the end token is not trained on": ("text/mask.py", "[*trained, True]", "[*trained, False]", TEXT),
    "the mask is shifted by one": ("text/mask.py", 'trained[first:end] = b"\\1" * (end - first)', 'trained[first + 1 : end] = b"\\1" * (end - first - 1)', TEXT),
    "the mask starts one early": ("text/mask.py", 'trained[first:end] = b"\\1" * (end - first)', 'trained[first - 1 : end] = b"\\1" * (end - first + 1)', TEXT),
    "a cut text has its mask shifted": ("text/mask.py", "start <= left + at < stop", "start <= left + at + 1 < stop", TEXT),
    "the prompt is not compared": ("text/mask.py", "return stop if ids[i:stop] == prompt else 0", "return stop", TEXT),
    "only the last answer is trained on": ("text/answers.py", "tuple(spans),", "tuple(spans[-1:]),", TEXT),
    "what a template leaves out is passed over": ("text/pieces.py", 'found.append(Fault(piece, "leaves out"))', "pass", "tests/templates -k forgets"),
    "a quoted control token ends a turn": ("text/tokens.py", "fakes = set(quoted(ids, offsets, contents, known))", "fakes = set()", "tests/equations/test_control_tokens.py -k end_no_turn"),
    "a row stops at its neighbour's end": ("base/stopping.py", "for stops, token in zip(self._stops, last, strict=True)", "for stops, token in zip(self._stops[1:] + self._stops[:1], last, strict=True)", "tests/equations/test_control_tokens.py -k each_row"),
    "a template's own end is taken for a turn's": ("text/answers.py", "if len(ends) > 1 else None", "if False else None", "tests/templates -k marked_tokens"),
    "training need not start where generation does": ("text/answers.py", "if not whole.text.startswith(prompt) or len(prompt) > first:", "if False:", "tests/templates -k marked_tokens"),
    "each part is normalised by itself": ("training/loop.py", "(loss / total).backward()", "(loss / batch.num_targets(part)).backward()", TRAINING),
    "labels are not shifted": ("training/batch.py", "= wanted[1:]", "= wanted[:-1]", TRAINING),
    "padding is learned": ("training/batch.py", "torch.full((len(examples), longest), IGNORE)", "torch.zeros((len(examples), longest), dtype=torch.long)", TRAINING),
    "attention looks ahead": ("core/attention.py", "is_causal=True", "is_causal=False", "tests/equations/test_attention.py"),
    "the head's gradient misses the label": ("core/cross_entropy.py", "labels.shape, -1)", "labels.shape, 0)", "tests/equations/test_cross_entropy.py"),
    "positions run on from row to row": ("training/batch.py", "positions.append(torch.arange(len(front) + length))", "positions.append(torch.arange(len(front) + length) + sum(map(len, positions)))", "tests/equations/test_loss.py"),
    "a short window is passed over": ("training/loss.py", " or not documents.fit(attention_mask)", "", "tests/equations/test_loss.py"),
    "a model that mixes rows is packed": ("training/loss.py", "return \"its tokens see more than the row that they are in\"", "pass", "tests/equations/test_loss.py"),
    "a tensor that is made again has the other's operand": ("core/recall.py", "lambda: node._saved_other)", "lambda: node._saved_self)", "tests/equations/test_recall.py"),
    "every tensor is kept": ("core/recall.py", "made = _made(node) or _narrow(node, tensor)", "made = None", "tests/equations/test_recall.py"),
    "a gate's gradients are exchanged": ("model/fused.py", "pointwise.silu_gate_backward(grad_outputs[0], *ctx.saved_tensors)", "pointwise.silu_gate_backward(grad_outputs[0], *ctx.saved_tensors)[::-1]", "tests/equations/test_fused.py"),
    "another norm is taken for this one": ("model/equivalence.py", "one.dtype == dtype and bool((_apart(one, other) <= TOLERANCE[dtype] * _size(other)).all())", "True", "tests/equations/test_fused.py"),
    "a module is compared with itself": ("model/equivalence.py", "for function in (theirs, ours))", "for function in (theirs, theirs))", "tests/equations/test_fused.py"),
    "a second argument is passed over": ("model/equivalence.py", "len(given) == 1 and given[0].kind", "given[0].kind", "tests/equations/test_fused.py"),
    "the first module of a class speaks for all": ("model/equivalence.py", "return (type(module), values, inner, shapes)", "return (type(module),)", "tests/equations/test_fused.py"),
    "a document sees the one before it": ("kernels/attention.py", "torch.tensor((0, *lengths))", "torch.tensor((0, sum(lengths), *[0] * (len(lengths) - 1)))", "tests/equations/test_attention.py"),
    "the learning rate never decays": ("training/schedule.py", "max(0.0, (num_steps - step) / max(1, num_steps - warmup))", "1.0", TRAINING),
    "a foreign base is accepted": ("base/origin.py", "if trained_on[part] != getattr(ours, part)", "if False", "tests/attacks -k another_base"),
    "extra tensors are dropped": ("formats/peft.py", 'problems.append(f"{key}: no tensor of', 'str(f"{key}: no tensor of', "tests/attacks -k missing_extra"),
    "a value of another kind is taken": ("fields.py", "if value is MISFIT]", "if False]", "tests/attacks/test_settings.py -k another_kind"),
    "a missing r is our own default": ("methods/_low_rank.py", '{"r": 8, "lora_alpha": 8}', "{}", "tests/interop/test_peft.py -k leaves_out"),
    "unknown keys are dropped": ("formats/peft.py", "value in (None, False, [], {})", "True", "tests/attacks -k keys_that_change"),
}  # fmt: skip
"""What is broken -> (file, text, replacement, the tests that must see it)."""


def run(mutated, tests):
    environment = os.environ | {"PYTHONPATH": f"{mutated}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests.split()]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_catches(tmp_path, name):
    file, text, replacement, tests = MUTANTS[name]
    shutil.copytree(ROOT / "src" / "inlay", tmp_path / "inlay")
    path = tmp_path / "inlay" / file
    source = path.read_text("utf-8")
    assert source.count(text) >= 1, f"{file} no longer has {text!r}: bring this mutant up to date"
    path.write_text(source.replace(text, replacement), "utf-8")
    done = run(tmp_path, tests)
    assert done.returncode == 1, f"no test saw that {name}\n{done.stdout[-2000:]}"
    assert " failed" in done.stdout


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_still_applies(name):
    file, text, _, _ = MUTANTS[name]
    assert text in (ROOT / "src" / "inlay" / file).read_text("utf-8")
