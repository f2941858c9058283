"""How two adapters differ, against decompositions of full matrices in float64."""

import numpy as np
import pytest
import torch

from inlay import formats
from inlay.base.load import load
from inlay.combine.contract import Made
from inlay.combine.diff import diff, summed
from inlay.combine.intruders import Shrinking, intruders
from inlay.core.routed import Factors
from inlay.errors import CompatibilityError
from tests.equations.test_combine import METHODS, named, saved
from tests.support import adapters, bases
from tests.support.command import run, run_json


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    base = load(bases.directory(home / "base"), dtype="float32")
    saved(base, home, [*METHODS][:2], twice=("plain",))
    return home


def decomposed(matrix):
    U, s, Vt = np.linalg.svd(matrix)
    rank = adapters.rank(matrix)
    return U[:, :rank], s[:rank], Vt[:rank].T


@pytest.mark.parametrize("other", ["plain", "rslora", "plain-2"])
def test_it_is_what_full_matrices_say(home, other):
    changes = {name: adapters.changes(home / name) for name in ("plain", other)}
    files = {"one": formats.read(home / "plain"), "other": formats.read(home / other)}
    for path, found in diff(files).items():
        one, two = changes["plain"].get(path), changes[other].get(path)
        norms = [0.0 if change is None else np.linalg.norm(change) for change in (one, two)]
        assert found.norms == pytest.approx(norms, rel=1e-6)
        assert found.intruders is None
        if one is None or two is None:
            assert (found.cosine, found.overlap_out, found.overlap_in) == (0, 0, 0)
            continue
        assert found.cosine == pytest.approx((one * two).sum() / np.prod(norms), abs=1e-6)
        (U, s, V), (U_, s_, V_) = decomposed(one), decomposed(two)
        smaller = min(len(s), len(s_))
        assert found.overlap_out == pytest.approx(np.square(U.T @ U_).sum() / smaller, abs=1e-6)
        assert found.overlap_in == pytest.approx(np.square(V.T @ V_).sum() / smaller, abs=1e-6)
        ranks = [np.exp(-(p * np.log(p)).sum()) for p in (s / s.sum(), s_ / s_.sum())]
        assert found.effective_ranks == pytest.approx(ranks, rel=1e-6)
        if other == "plain":
            assert (found.cosine, found.overlap_out) == (pytest.approx(1), pytest.approx(1))


def test_modules_of_one_name_are_taken_together(home):
    files = {name: formats.read(home / name) for name in ("plain", "plain-2")}
    one, two = (adapters.changes(home / name) for name in files)
    paths = [path for path in one if path.endswith("v_proj")]
    norms = [np.sqrt(sum(np.square(changes[path]).sum() for path in paths)) for changes in (one, two)]
    found = summed(diff(files))["v_proj"]
    assert found.norms == pytest.approx(norms, rel=1e-6)
    assert found.cosine == pytest.approx(
        sum((one[path] * two[path]).sum() for path in paths) / np.prod(norms), abs=1e-6
    )


@pytest.mark.parametrize("shape", [(67, 83), (83, 67)])
def test_a_direction_like_none_of_the_base_is_an_intruder(shape):
    generator = torch.Generator().manual_seed(3)
    U, s, Vt = np.linalg.svd(torch.randn(*shape, generator=generator).double().numpy(), full_matrices=False)
    s = np.geomspace(9, 0.1, len(s))  # well apart
    weight = torch.from_numpy((U * s) @ Vt).float()
    B, A = (torch.randn(size, 1, generator=generator) for size in shape)
    new = Factors(A.T / A.norm(), B / B.norm(), 20.0)
    (found,) = intruders(weight, new)
    assert len(found.A) == 1
    assert float((found.B @ found.A).norm()) == pytest.approx(20, rel=0.1)
    turned, sizes, _ = np.linalg.svd(weight.double().numpy() + 20 * (new.B.double() @ new.A.double()).numpy())
    expected = [i for i in range(10) if np.abs(U.T @ turned[:, i]).max() < 0.5] if shape[0] < shape[1] else [0]
    assert expected == [0]
    assert float((found.B @ found.A).norm()) == pytest.approx(sizes[0], rel=1e-4)
    old = Factors(torch.from_numpy(Vt[4:5]).float(), torch.from_numpy(U[:, 4:5]).float(), 20.0)
    assert len(intruders(weight, old)[0].A) == 0
    assert len(intruders(weight, Factors(0 * old.A, old.B, 1.0))[0].A) == 0


@pytest.mark.parametrize("shape", [(600, 1500), (1500, 600)])
def test_directions_of_a_weight_that_lie_close_together_are_no_intruders(shape):
    generator = torch.Generator().manual_seed(4)
    weight = torch.randn(*shape, generator=generator)
    B, A = (torch.randn(size, 1, generator=generator) for size in shape)
    little = Factors(A.T / A.norm(), B / B.norm(), 1e-3)
    assert len(intruders(weight, little)[0].A) == 0


def without_intruders(weight, change, scale):
    """(the change with the intruders of the changed weight so many times as large, how many they are)."""
    wide = weight.shape[0] > weight.shape[1]
    own = np.linalg.svd(weight)[2].T if wide else np.linalg.svd(weight)[0]
    U, s, Vt = np.linalg.svd(weight + change, full_matrices=False)
    new = [i for i in range(10) if np.abs(own.T @ (Vt[i] if wide else U[:, i])).max() < 0.5]
    return change - (1 - scale) * sum(s[i] * np.outer(U[:, i], Vt[i]) for i in new), len(new)


@pytest.mark.parametrize("shape", [(67, 83), (83, 67)])
@pytest.mark.parametrize("scale", [0.0, 0.3])
def test_intruders_become_smaller_and_all_else_stays(shape, scale):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(*shape, generator=generator) / 9
    B, A = torch.randn(shape[0], 3, generator=generator), torch.randn(3, shape[1], generator=generator)
    change = Made((A * torch.tensor([[0.11], [0.07], [0.03]])).double(), B.double(), 2.0, 1.0)
    shrinking = Shrinking(lambda path: {"map": weight}[path], scale)
    found = shrinking("map", change)
    wanted, number = without_intruders(weight.double().numpy(), (change.B @ change.A).numpy(), scale)
    assert shrinking.found == {"map": number}
    assert number > 1
    assert len(found.A) == 3 + number
    assert np.linalg.norm((found.B @ found.A).numpy() - wanted) < 1e-3 * np.linalg.norm(wanted)
    assert (found.square_norm, found.square_error) == (2.0, 1.0)


def test_the_command_that_combines_shrinks_them(home, tmp_path, capsys):
    more = ["--shrink-intruders", 0.3, "--model", home / "base"]
    status, _, err = run(capsys, "combine", home / "plain", "--weights", 4, *more, "--output", tmp_path / "out")
    assert status == 0, err
    base, found, numbers = load(home / "base", dtype="float32"), adapters.changes(tmp_path / "out"), []
    for path, change in adapters.changes(home / "plain").items():
        wanted, number = without_intruders(base.maps[path].weight(torch.float64).numpy(), 4 * change, 0.3)
        assert np.linalg.norm(found[path] - wanted) < 1e-3 * np.linalg.norm(wanted)
        numbers.append(number)
    assert sum(numbers) > 0
    assert f"{sum(numbers)} intruder dimensions, in {sum(map(bool, numbers))} of {len(numbers)} modules: 0.3 of" in err
    assert "everything: this way is exact, before shrinking" in err
    base.attach(tmp_path / "out")
    assert base.adapters["out"].record["combined"]["shrink_intruders"] == 0.3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--shrink-intruders", 0.3], "--shrink-intruders alone"),
        (["--model", "base"], "--model alone"),
        (["--shrink-intruders", 1, "--model", "base"], "at least 0 and below 1"),
        (["--shrink-intruders", 0.3, "--model", "other"], "another base"),
    ],
)
def test_intruders_of_no_base_or_by_no_factor_are_refused(home, tmp_path, capsys, monkeypatch, more, says):
    monkeypatch.chdir(home)
    bases.directory(home / "other", seed=4)
    status, _, err = run(capsys, "combine", "plain", *more, "--output", tmp_path / "out")
    assert status != 0
    assert says in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("with_model", [False, True])
def test_the_command(home, capsys, with_model):
    more = ["--model", home / "base"] if with_model else []
    report = run_json(capsys, "diff", home / "plain", home / "rslora", *more)
    assert report["of"] == ["plain", "rslora"]
    assert {*report["modules"]} == {*adapters.changes(home / "plain")}
    counts = [module["intruders"] for module in report["modules"].values()]
    assert all((count is not None) == with_model for count in counts)
    out = run(capsys, "diff", home / "plain", home / "plain-2", *more)[1]
    assert {line.split()[0] for line in out.splitlines()[1:]} == {path.rpartition(".")[2] for path in report["modules"]}


def test_adapters_that_name_different_bases_are_not_compared(home):
    with pytest.raises(CompatibilityError, match="name different bases"):
        diff(named(home, ("meta-llama/Meta-Llama-3-8B", "mistralai/Mistral-7B-v0.1"), ({}, {})))


def test_an_adapter_of_another_base_is_refused(home, tmp_path, capsys):
    bases.directory(tmp_path / "other", seed=4)
    status, _, err = run(capsys, "diff", home / "plain", home / "plain-2", "--model", tmp_path / "other")
    assert status == 1
    assert "another base" in err
