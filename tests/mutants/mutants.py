"""Deliberate bugs: what is broken -> (a function of the package, what is made of it, the tests that must see it).

What is made of a function is said by another one, which is given the function and returns the broken one. Most of them hand
other arguments to the function, or another answer on (`changed`), so that they know names that others call by, and nothing of
how the function is written.
"""

import functools
import inspect
from dataclasses import replace
from types import SimpleNamespace

import torch


def changed(answer=None, **arguments):
    """The mutation that makes some arguments of those given, g, and of the answer and g another answer."""

    def mutation(original):
        signature = inspect.signature(original)
        unknown = sorted(arguments.keys() - signature.parameters.keys())
        if unknown:
            raise LookupError(f"{original.__qualname__} has no argument {', '.join(unknown)}")

        @functools.wraps(original)
        def broken(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            g = SimpleNamespace(**bound.arguments)
            bound.arguments.update({name: make(g) for name, make in arguments.items()})
            found = original(*bound.args, **bound.kwargs)
            return found if answer is None else answer(found, g)

        return broken

    return mutation


def instead(answer):
    """The mutation that does nothing and answers this."""
    return lambda original: lambda *args, **kwargs: answer


def factors(change):
    """Of `routed`: each adapter's factors are others."""
    return changed(factors=lambda g: [change(f) for f in g.factors])


def trained(change):
    """Of `encoded`: which tokens of a row are trained on."""
    return changed(lambda rows, g: [replace(row, trained=change(row.trained)) for row in rows])


def sloped(tensor, factor):
    """The same numbers, with `factor` times the gradient."""
    return tensor.detach() + factor * (tensor - tensor.detach())


def turned(items):
    """Each takes the place of the one before it."""
    return [*items[1:], *items[:1]]


def rounded_twice(merged):
    return lambda W, A, B, scaling: W + (merged(W.float(), A, B, scaling) - W.float()).to(W.dtype)


def never_falling(factor):
    return lambda step, num_steps: max(factor(earlier, num_steps) for earlier in range(step + 1))


def forgotten(detach):
    return lambda self, name: self._held.pop(name)


def neighbours(segments, g):
    return [s._replace(adapter=other.adapter) for s, other in zip(segments, turned(segments), strict=True)]


def padding_labelled(batch, g):
    for labels, example in zip(batch.labels, g.examples, strict=True):
        labels[len(example.input_ids) :] = 0
    return batch


def normalised_alone(loss, g):
    return sloped(loss, 1 / sum(example.num_trained for example in g.examples))


def one_for_all(generator):
    return dict.fromkeys(generator, next(iter(generator.values()))) if isinstance(generator, dict) else generator


BACKWARDS = {"q": lambda g: g.q.flip(1), "k": lambda g: g.k.flip(1), "v": lambda g: g.v.flip(1)}
"""Of `document_attention`: with its lengths and its answer turned round too, each token sees itself and what comes after."""

SWEEPS, ROUTED, METHODS, TEXT, CONTROL, TRAINING, ATTENTION, INPUT = (
    "tests/laws/test_sweeps.py -k",
    "tests/equations/test_routed.py -k",
    "tests/laws/test_methods.py -k",
    "tests/equations/test_text.py -k",
    "tests/equations/test_control_tokens.py -k",
    "tests/equations/test_training.py -k",
    "tests/equations/test_attention.py -k",
    "tests/attacks/test_bad_input.py -k",
)

MUTANTS = {
    # the product and its gradients
    "the scaling is dropped": ("routed", factors(lambda f: replace(f, scaling=1.0)), f"{ROUTED} own_adapter"),
    "A is transposed": ("routed", factors(lambda f: replace(f, A=f.A.T.reshape(f.A.shape))), f"{ROUTED} own_adapter"),
    "the gradient of A misses the scaling": ("routed", factors(lambda f: replace(f, A=sloped(f.A, 1 / f.scaling))), f"{ROUTED} gradients_are"),
    "the gradient of B misses the scaling": ("routed", factors(lambda f: replace(f, B=sloped(f.B, 1 / f.scaling))), f"{ROUTED} gradients_are"),
    "the gradient of x misses the adapter": ("routed", changed(dropped=lambda g: g.x.detach() if g.dropped is None else g.dropped), f"{ROUTED} gradients_are"),

    # who takes which adapter
    "a row takes its neighbour's adapter": ("row_segments", changed(adapters=lambda g: turned(g.adapters)), f"{ROUTED} own_adapter"),
    "a row takes its neighbour's adapter in experts": ("AdaptedParameters._segments", changed(neighbours), "tests/laws/test_experts.py -k rows_take"),
    "the change of a token's row has the other sign": ("modules:Embedding.add_rows_", changed(change=lambda g: -g.change), "tests/interop/test_methods.py -k tokens"),
    "a row stops at its neighbour's end": ("RowStops.__init__", changed(stops=lambda g: turned(g.stops)), f"{CONTROL} each_row"),

    # the start, merging, the base
    "B does not start at zero": ("methods:LowRank._pair", changed(lambda params, g: params | {"lora_B": torch.ones_like(params["lora_B"])}), f"{METHODS} 'fresh_adapter and lora'"),
    "the seed is ignored": ("AdapterSet.fresh", changed(seed=lambda g: 0), f"{METHODS} same_seed"),
    "a merged weight is rounded twice": ("core:merged", rounded_twice, f"{ROUTED} rounded_once"),
    "an adapted layer stays after detaching": ("AdapterSet.detach", forgotten, f"{METHODS} 'every_byte and lora'"),
    "the constants of NF4 are halved": ("kernels/nf4:quantize", changed(lambda found, g: (found[0], found[1] / 2)), "tests/equations/test_nf4.py -k nearest_and"),

    # what is trained on
    "the mask is shifted by one": ("encoded", trained(lambda row: [0, *row[:-1]]), f"{TEXT} with_their_end"),
    "the end token is not trained on": ("encoded", trained(lambda row: [now and then for now, then in zip(row, [*row[1:], 0], strict=True)]), f"{TEXT} with_their_end"),
    "what a template leaves out is passed over": ("Said.faults", changed(lambda found, g: [fault for fault in found if fault.what != "leaves out"]), "tests/templates -k forgets"),
    "a quoted control token ends a turn": ("quoted", instead([]), f"{CONTROL} end_no_turn"),
    "labels are not shifted": ("collate", changed(lambda batch, g: replace(batch, labels=batch.labels.roll(1, 1))), f"{TRAINING} labels_are"),
    "padding is learned": ("collate", changed(padding_labelled), f"{TRAINING} labels_are"),
    "each part is normalised by itself": ("tasks:loss_of", changed(normalised_alone), f"{TRAINING} parts_of_a_step"),
    "the learning rate never decays": ("training:factor", never_falling, f"{TRAINING} falls_to_zero"),

    # many runs at once
    "a row of a sweep takes its neighbour's adapter": ("packed_segments", changed(adapters=lambda g: turned(g.adapters)), f"{SWEEPS} only_difference"),
    "the losses of two runs are exchanged": ("tasks:losses_of", changed(lambda losses, g: turned(losses)), f"{SWEEPS} only_difference"),
    "all runs draw their dropout from one generator": ("AdapterSet.using", changed(generator=lambda g: one_for_all(g.generator)), f"{SWEEPS} only_difference"),
    "a run that fails with others is not tried alone": ("sweeps:Passes._alone_", instead(None), f"{SWEEPS} tried_alone"),

    # who sees what
    "attention looks ahead": ("kernels/attention:document_attention", changed(lambda out, g: out.flip(0), lengths=lambda g: g.lengths[::-1], **BACKWARDS), f"{ATTENTION} later_token"),
    "a document sees the one before it": ("kernels/attention:document_attention", changed(lengths=lambda g: [sum(g.lengths)]), f"{ATTENTION} alone"),
    "a model that looks ahead is trained": ("base:check_causal", instead(None), "tests/equations/test_causality.py -k later_tokens"),

    # what is taken for what it is not
    "another norm is taken for this one": ("agree", instead(True), "tests/equations/test_fused.py -k left_alone"),
    "a prefix that is ignored is taken": ("PromptTrials.check", instead(None), "tests/laws/test_prompts_families.py -k 'prefix and refused'"),
    "a foreign base is accepted": ("base/origin:check", changed(force=lambda g: True), f"{INPUT} another_base"),
    "unknown keys are dropped": ("formats/peft:_unsupported", instead([]), f"{INPUT} brand_new_key"),
    "missing tensors are passed over": ("Layout.problems", changed(lambda found, g: [text for text in found if "missing" not in text]), f"{INPUT} missing_extra"),

    # what a server answers, and to whom
    "a request is answered by the plain base": ("http:Service.ask", changed(version=lambda g: None), "tests/serve/test_openai.py -k does_alone"),
    "every key sees every adapter": ("http:Caller.sees", instead(True), "tests/serve/test_http.py -k a_key_sees"),
    "a text goes on behind its stop string": ("serve:Stops.add", lambda original: lambda self, text: text, "tests/serve/test_words.py -k string"),
    "a grammar is not followed": ("serve:Guide.advance", instead(None), "tests/serve/test_openai.py -k held_to"),
    "changed files are read in silence": ("serve:files_of", instead({}), "tests/serve/test_slots.py -k files"),

    # what comes from others
    "what came is not digested": ("hub/transfer:is_content", instead(True), "tests/attacks/test_transports.py -k changed_byte"),
    "a name may lead anywhere": ("hub/manifest:is_name", instead(True), "tests/attacks/test_transports.py -k no_name_leads"),
    "whoever signed is trusted": ("hub/sign:verify", changed(lambda found, g: found and found._replace(path=g.keys[0])), "tests/laws/test_share.py -k files_and_its_key"),
    "a rule is passed over": ("Rule.fits", instead(False), "tests/laws/test_share.py -k policy_is_kept"),
    "a licence is passed over": ("licenses:forbids", instead(False), "tests/laws/test_share.py -k forbids"),
}  # fmt: skip


def breaks_down(original):
    def broken(*args, **kwargs):
        raise RuntimeError("this mutant breaks down")

    return broken


PLANTED = {
    "nothing is changed": ("row_segments", changed(), f"{ROUTED} 'own_adapter and one'"),
    "a mutant breaks down": ("row_segments", breaks_down, f"{ROUTED} 'own_adapter and one'"),
}
"""What has to be reported: a mutant that no test sees, and one that is no bug but an exception."""
