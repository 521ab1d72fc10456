"""The gate's decisions follow from the features alone, survive saving, and a file that does not fit is refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from src.core.errors import UserError
from src.gating.domain_gate import GATE_FILE, Decision, DomainGate, robust_end
from tests.errors import refuses

D = 6
BASE = "0123456789abcdef"


def images(centre: float, count: int = 40, seed: int = 0) -> torch.Tensor:
    """Features (N, 3, D) around a centre; views of an image differ less than images."""
    draw = torch.Generator().manual_seed(seed)
    return (
        centre
        + torch.randn(count, 1, D, generator=draw) * torch.arange(1, D + 1)
        + 0.3 * torch.randn(count, 3, D, generator=draw)
    )


@pytest.fixture
def gate() -> DomainGate:
    gate = DomainGate(BASE)
    gate.fit("near", images(0.0))
    gate.fit("far", images(60.0))
    return gate


class TestDecisions:
    def test_the_domain_a_point_belongs_to(self, gate):
        assert gate.decide(torch.zeros(D)).domain == "near"
        assert gate.decide(torch.full((D,), 60.0)).domain == "far"
        nowhere = gate.decide(torch.full((D,), 30.0))
        assert nowhere.domain is None
        assert all(distance > 1 for distance in nowhere.distances.values())

    def test_the_nearest_where_it_must_be_one(self, gate):
        assert gate.decide_nearest(torch.full((D,), 25.0)).domain == "near"
        assert gate.decide_nearest(torch.full((D,), 1e4)).domain == "far"

    def test_without_domains_there_is_nothing_to_decide(self):
        assert DomainGate(BASE).decide(torch.zeros(D)) == Decision(None, {})
        assert DomainGate(BASE).decide_nearest(torch.zeros(D)) == Decision(None, {})

    def test_most_new_images_are_inside(self, gate):
        new = images(0.0, 300, seed=9).flatten(0, 1)
        inside = sum(gate.decide(x).domain == "near" for x in new) / len(new)
        assert 0.85 < inside < 0.99

    def test_a_direction_in_which_views_differ_is_no_sign_of_another_domain(self):
        direction = torch.zeros(D)
        direction[0] = 1.0
        as_is = 0.1 * torch.randn(40, 1, D, generator=torch.Generator().manual_seed(0))
        steps = torch.linspace(-5, 5, 9)[None, :, None] * direction
        plain, lit = DomainGate(BASE), DomainGate(BASE)
        plain.fit("x", as_is)
        lit.fit("x", as_is + steps)
        darker = 4 * direction
        assert plain.decide(darker).domain is None
        assert lit.decide(darker).domain == "x"
        assert lit.decide(4 * direction.roll(1)).domain is None

    def test_domains_are_fitted_apart(self, gate):
        before = gate.decide(torch.ones(D)).distances["near"]
        gate.fit("far", images(80.0))
        gate.fit("third", images(-60.0))
        assert gate.decide(torch.ones(D)).distances["near"] == before
        gate.remove("third")
        assert list(gate.domains) == ["near", "far"]
        with refuses("gate.unknown-domain", "'third'", "near, far"):
            gate.remove("third")

    @settings(max_examples=20, deadline=None)
    @given(scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
    def test_units_of_features_do_not_matter(self, scale, shift):
        one, other = DomainGate(BASE), DomainGate(BASE)
        one.fit("x", images(0.0))
        other.fit("x", images(0.0) * scale + shift)
        x = torch.arange(D) * 2.0
        expected = one.decide(x).distances["x"]
        assert other.decide(x * scale + shift).distances["x"] == pytest.approx(expected, rel=0.02)

    @pytest.mark.parametrize("name", ["auto", "on", "off", ""])
    def test_names_of_modes_are_refused(self, name):
        with refuses("gate.name"):
            DomainGate(BASE).fit(name, images(0.0))

    def test_what_cannot_be_fitted_is_refused(self, gate):
        with refuses("gate.few-images"):
            gate.fit("x", images(0.0, 1))
        with refuses("gate.not-finite"):
            gate.fit("x", images(float("nan")))
        with pytest.raises(ValueError, match=f"4 features, but domain 'near' has {D}"):
            gate.fit("x", images(0.0)[..., :4])

    def test_equal_images_are_no_error(self):
        gate = DomainGate(BASE)
        gate.fit("x", torch.ones(2, 3, D))
        assert gate.decide(torch.ones(D) + 1).domain is None


class TestWhereADomainEnds:
    def test_at_the_95th_percentile_of_log_normal_distances(self):
        logs = 2 + 0.3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)).double()
        assert robust_end(logs.exp()) == pytest.approx(float(torch.quantile(logs[:10_000], 0.95).exp()), rel=0.02)

    def test_one_odd_image_among_few_moves_it_little(self):
        few = torch.linspace(3, 5, 12).double()
        odd = torch.cat([few, torch.tensor([40.0, 60.0])])
        assert robust_end(odd) < 1.25 * robust_end(few)


class TestFiles:
    def test_round_trip(self, gate, tmp_path):
        gate.save(tmp_path)
        loaded = DomainGate.load(tmp_path, BASE)
        assert list(loaded.domains) == ["near", "far"]
        for x in images(20.0, 10).flatten(0, 1):
            assert loaded.decide(x) == gate.decide(x)
        assert [path.name for path in tmp_path.iterdir()] == [GATE_FILE]

    def test_domains_are_added_later(self, gate, tmp_path):
        gate.save(tmp_path)
        loaded = DomainGate.load(tmp_path, BASE)
        loaded.fit("third.v2", images(-60.0))
        loaded.save(tmp_path)
        assert DomainGate.load(tmp_path, BASE).decide(torch.full((D,), -60.0)).domain == "third.v2"

    def test_another_base_is_refused(self, gate, tmp_path):
        gate.save(tmp_path)
        with refuses("gate.other-base") as caught:
            DomainGate.load(tmp_path, "fedcba9876543210")
        assert all(fingerprint in str(caught.value) for fingerprint in (GATE_FILE, BASE[:12], "fedcba987654"))

    def test_files_that_are_none_are_refused(self, gate, tmp_path):
        with refuses("gate.missing-file"):
            DomainGate.load(tmp_path, BASE)
        gate.save(tmp_path)
        path = tmp_path / GATE_FILE
        path.write_bytes(path.read_bytes()[:-10])
        with refuses("gate.damaged"):
            DomainGate.load(tmp_path, BASE)
        save_file({"x": torch.zeros(1)}, path)
        with refuses("gate.metadata"):
            DomainGate.load(tmp_path, BASE)

    @pytest.mark.parametrize(
        ("change", "code", "fact"),
        [
            ({"format_version": 9}, "gate.metadata", "format_version"),
            ({"format_version": 1}, "gate.metadata", "earlier version"),
            ({"base_fingerprint": None}, "gate.metadata", "base_fingerprint"),
            ({"thresholds": {"near": 1.0}}, "gate.keys", "far.deviation, far.mean, far.views"),
            ({"thresholds": {"near": 1.0, "far": -2.0}}, "gate.metadata", "threshold"),
        ],
    )
    def test_wrong_metadata_are_refused(self, gate, tmp_path, change, code, fact):
        gate.save(tmp_path)
        rewrite(tmp_path, change, lambda tensors: None)
        with refuses(code) as caught:
            DomainGate.load(tmp_path, BASE)
        assert fact in str(caught.value)

    def test_wrong_tensors_are_refused(self, gate, tmp_path):
        gate.save(tmp_path)
        rewrite(tmp_path, {}, lambda tensors: tensors.update({"near.mean": torch.zeros(2)}))
        with refuses("gate.shapes") as caught:
            DomainGate.load(tmp_path, BASE)
        assert "'near'" in str(caught.value)
        rewrite(tmp_path, {}, lambda tensors: tensors.pop("far.mean"))
        with refuses("gate.keys") as caught:
            DomainGate.load(tmp_path, BASE)
        assert "far.mean" in str(caught.value)

    def test_a_flipped_bit_never_changes_a_gate_that_loads(self, gate, tmp_path):
        gate.save(tmp_path)
        path = tmp_path / GATE_FILE
        whole = path.read_bytes()
        for place in range(8, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            try:
                found = DomainGate.load(tmp_path, BASE)
            except UserError as error:
                assert error.code.startswith("gate.") and GATE_FILE in str(error)
                continue
            assert place < 8 + int.from_bytes(whole[:8], "little"), "a bit of a number flipped"
            for name, domain in found.domains.items():
                assert torch.equal(domain.views, gate.domains[name].views)
                assert (domain.threshold, domain.mean.tolist()) == (
                    gate.domains[name].threshold, gate.domains[name].mean.tolist(),
                )  # fmt: skip

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("key", ["near.mean", "far.views"])
    def test_numbers_that_are_not_finite_are_refused(self, gate, tmp_path, key, value):
        gate.save(tmp_path)
        rewrite(tmp_path, {}, lambda tensors: tensors[key].view(-1)[-1:].fill_(value))
        with refuses("gate.not-finite", key):
            DomainGate.load(tmp_path, BASE)
        rewrite(tmp_path, {"thresholds": {"near": value, "far": 1.0}}, lambda tensors: None)
        with refuses("gate.metadata", "threshold"):
            DomainGate.load(tmp_path, BASE)

    def test_a_gate_of_other_features_is_refused(self, gate, tmp_path):
        with refuses("gate.shapes", "6 numbers", "gives 7"):
            gate.decide(torch.zeros(D + 1))
        other = {"far.mean": torch.zeros(2), "far.deviation": torch.ones(2), "far.views": torch.zeros(3, 2)}
        gate.save(tmp_path)
        rewrite(tmp_path, {}, lambda tensors: tensors.update(other))
        with refuses("gate.shapes", "'far'"):
            DomainGate.load(tmp_path, BASE)

    def test_a_deviation_of_nothing_is_refused(self, gate, tmp_path):
        gate.save(tmp_path)
        rewrite(tmp_path, {}, lambda tensors: tensors["near.deviation"].zero_())
        with refuses("gate.metadata", "'near'", "deviation"):
            DomainGate.load(tmp_path, BASE)

    @pytest.mark.parametrize("what", ["folder", "link to nothing"])
    def test_what_is_in_its_place_is_not_read_as_no_gate(self, tmp_path, what):
        assert DomainGate.beside(tmp_path, BASE) is None
        if what == "folder":
            (tmp_path / GATE_FILE).mkdir()
        else:
            (tmp_path / GATE_FILE).symlink_to("nothing")
        with refuses("gate.missing-file", GATE_FILE):
            DomainGate.beside(tmp_path, BASE)


def rewrite(folder, change: dict, edit) -> None:
    """Give the gate file in a folder other metadata or tensors, as one of an earlier version, without a checksum."""
    path = folder / GATE_FILE
    tensors = load_file(path)
    edit(tensors)
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["domain_gate"])
    described.pop("sha256", None)
    save_file(tensors, path, {"domain_gate": json.dumps({**described, **change})})
