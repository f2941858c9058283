"""A base that processes hold in parts says what a whole one says, and teaches the same; none holds more than its part."""

import json

import pytest
import torch

import inlay
from inlay.distributed.world import Alone
from inlay.errors import ConfigError
from inlay.modules.sharded import Sharded
from tests.laws import test_world as law
from tests.support import bases, workers

pytestmark = pytest.mark.usefixtures("one_thread")

METHOD = inlay.Lora(r=3, lora_alpha=5)
HOW = law.SETTINGS | dict(method=METHOD, eval_fraction=0.3, seed=2)
SCHEMES = (None, "nf4", "int8")

SHARED = """
import json, sys
from pathlib import Path
import torch, inlay
from inlay.distributed.group import joined
from inlay.modules import sharded
from tests.laws import test_sharded as law
torch.set_num_threads(1)
place, here = map(Path, sys.argv[1:])
held, made = [], sharded.Sharded.__init__
def init(self, *given):
    made(self, *given)
    held.append(self.num_bytes)
sharded.Sharded.__init__ = init
with joined() as world:
    for scheme in law.SCHEMES:
        held.clear()
        base = inlay.load(place / "wide", dtype="float32", quantize=scheme, held_by=world)
        inlay.train(base, place / "rows.jsonl", output=here / str(scheme), **law.HOW)
        (here / f"{scheme}-{world.rank}.json").write_text(json.dumps(held))
"""


def test_a_base_in_parts_teaches_what_a_whole_one_does(tmp_path):
    from tests.support import models, quantized

    model = models.model("llama", sizes=quantized.SIZES | {"max_position_embeddings": 128})
    model.save_pretrained(tmp_path / "wide")
    bases.tokenizer().save_pretrained(tmp_path / "wide")
    bases.jsonl(tmp_path / "rows.jsonl", [*bases.rows(30), {"prompt": "say " * 9, "completion": "it is long " * 4}])
    (tmp_path / "parts").mkdir()
    ends = workers.run(2, SHARED, tmp_path, tmp_path / "parts")
    assert [status for status, *_ in ends] == [0, 0], ends
    for scheme in SCHEMES:
        base = inlay.load(tmp_path / "wide", dtype="float32", quantize=scheme)
        inlay.train(base, tmp_path / "rows.jsonl", output=tmp_path / str(scheme), **HOW)
        found = law.differing(*(law.result(place / str(scheme)) for place in (tmp_path, tmp_path / "parts")))
        assert found == {}, scheme
        held = [json.loads((tmp_path / "parts" / f"{scheme}-{rank}.json").read_text()) for rank in range(2)]
        assert held[0] == held[1]
        linears = [linear.module for path, linear in base.linears.items() if path != base.head or scheme is None]
        whole = sum(sum(t.nbytes for t in m.matrix.packed.values()) if scheme else m.weight.nbytes for m in linears)
        assert whole / 2 <= sum(held[0]) <= whole / 2 + 300 * 6 * len(linears)


def test_one_process_holds_no_part(tmp_path):
    bases.directory(tmp_path / "base")
    with pytest.raises(ConfigError, match="held in parts by several processes"):
        inlay.load(tmp_path / "base", held_by=Alone())


def test_a_weight_is_gathered_again_only_after_another_one():
    from inlay import quant

    scheme = quant.find("nf4")
    whole = [scheme.open(scheme.quantize(torch.randn(16, 64))) for _ in range(2)]
    world, gathered = Alone(), []
    world.gather_ = lambda slot, own: (gathered.append(len(own)), slot.copy_(own))
    there = Sharded(whole, world, torch.device("cpu")).matrices
    for number in (0, 0, 1, 1, 0):
        assert torch.equal(there[number].dequantize(torch.float32), whole[number].dequantize(torch.float32))
    assert len(gathered) == 3
